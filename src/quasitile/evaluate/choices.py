"""Multiple choice by likelihood: the option that the model finds most probable after the question."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from quasitile.errors import InputError
from quasitile.evaluate.answers import accepted_of, answer_of, normalise, question_of
from quasitile.evaluate.batches import by_length, encode, inference, pad_token, padded, window_length
from quasitile.evaluate.generation import fitted_prompt
from quasitile.folders import read_jsonl

NUM_OPTIONS = 4
MOST_CANDIDATES = 300  # answers among which the most similar are looked for
NO_CHOICE_KINDS = ("true_false", "summary", "choice")  # two options, too long ones to compare, options of its own
QUANTITY = re.compile(r"\W*\d[\d.,^×x±\s-]*(?P<unit>.*)", re.DOTALL)


class Item(NamedTuple):
    """A question, its options, and which of them is right."""

    question: str
    options: tuple[str, ...]
    answer: int


def choice_report(
    model: Any, tokenizer: Any, items: Sequence[Item], *, per: str = "characters", batch_size: int = 32
) -> dict[str, float]:
    """The share of items where the right option is the likeliest.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        items: The questions.
        per: What an option's log-probability is divided by, a key of `LENGTHS`.
        batch_size: Options in one forward pass.

    Returns:
        `accuracy`, `chance` (the mean of one over the number of options) and `num_questions`.

    Raises:
        ValueError: There is no item, or `per` is unknown.
    """
    if not items:
        raise ValueError("items is empty; give at least one question")
    if per not in LENGTHS:
        raise ValueError(f"per={per!r} must be one of {', '.join(LENGTHS)}")
    pairs = [(item.question, option) for item in items for option in item.options]
    scores = iter(option_scores(model, tokenizer, pairs, per=per, batch_size=batch_size))
    hits = []
    for item in items:
        own = [next(scores) for _ in item.options]
        hits.append(max(range(len(own)), key=own.__getitem__) == item.answer)
    chance = sum(1 / len(item.options) for item in items) / len(items)
    return {"accuracy": sum(hits) / len(hits), "chance": chance, "num_questions": len(items)}


def option_scores(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], *, per: str = "characters", batch_size: int = 32
) -> list[float]:
    """The log-probability of each option's tokens after its question's prompt, over the option's length.

    Raises:
        InputError: A question with its option is longer than the model's window.
    """
    lead = "" if tokenizer.chat_template is not None else " "  # "Answer:" wants a space, a chat's turn does not
    options = [encode(tokenizer, lead + option) for _, option in pairs]
    limit = window_length(model)
    prompts = [
        encode(tokenizer, fitted_prompt(tokenizer, question, None, limit - len(option))[0])
        for (question, _), option in zip(pairs, options, strict=True)
    ]
    rows = [question + option for question, option in zip(prompts, options, strict=True)]
    scores = [0.0] * len(pairs)
    with inference(model) as device:
        for batch in by_length([len(row) for row in rows], batch_size):
            tokens, mask = (values.to(device) for values in padded([rows[index] for index in batch], pad_token(tokenizer)))
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            for place, index in enumerate(batch):
                start, stop = len(prompts[index]), len(rows[index])
                total = token_log_probabilities(logits[place, start - 1 : stop - 1], tokens[place, start:stop]).sum().item()
                scores[index] = total / max(LENGTHS[per](pairs[index][1], options[index]), 1)
    return scores


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """The float32 log-probability of each token (T,) under the logits (T, V) that predict it."""
    return logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def choices_from_questions(records: Sequence[dict[str, Any]], seed: int = 0, pool: Iterable[dict[str, Any]] = ()) -> list[Item]:
    """Items with four options from question records, the wrong ones being answers to other questions.

    Wrong options are of the same kind of question and of the same form: quantities with the same
    unit if there are enough, then other quantities; words for about as many words. What is accepted for a
    question is never a wrong option. Questions without three such answers are left out, and so are
    true-or-false and summary questions.

    Args:
        records: The questions to ask.
        seed: Draws the options and their order.
        pool: Further records, whose answers may serve as wrong options.
    """
    rng, items = random.Random(seed), []
    usable = [record for record in (*records, *pool) if record["metadata"]["kind"] not in NO_CHOICE_KINDS]
    answers: dict[str, dict[str, None]] = {}  # by kind, each once, in order
    for record in usable:
        answers.setdefault(record["metadata"]["kind"], {})[answer_of(record)] = None
    candidates = {kind: list(found) for kind, found in answers.items()}
    right: dict[str, set[str]] = {}
    for record in usable:
        right.setdefault(normalise(question_of(record)), set()).update(map(normalise, accepted_of(record)))
    for record in records:
        kind = record["metadata"]["kind"]
        if kind in NO_CHOICE_KINDS:
            continue
        question, answer = question_of(record), answer_of(record)
        wrong = draw_wrong(answer, candidates[kind], right[normalise(question)], rng)
        if wrong:
            items.append(shuffled_item(question, answer, wrong, rng))
    return items


def draw_wrong(answer: str, others: Sequence[str], right: set[str], rng: random.Random) -> list[str]:
    """Three wrong options of the answer's form and most like it; none if there are not enough.

    Quantities are alike in their unit, words in their number, so that length does not give the answer away.
    """
    unit = unit_of(answer)

    def distance(other: str) -> int:
        return abs(len(other.split()) - len(answer.split())) if unit is None else int(unit_of(other) != unit)

    candidates = rng.sample(others, min(len(others), MOST_CANDIDATES))
    same_form = [other for other in candidates if (unit_of(other) is None) == (unit is None)]
    wrong: dict[str, str] = {}
    for other in sorted(same_form, key=distance):  # stable: the draw decides among those equally alike
        if normalise(other) not in right:
            wrong.setdefault(normalise(other), other)
    return list(wrong.values())[: NUM_OPTIONS - 1] if len(wrong) >= NUM_OPTIONS - 1 else []


def unit_of(answer: str) -> str | None:
    """What follows the number of an answer that begins with one (maybe nothing), or `None` for words."""
    match = QUANTITY.fullmatch(answer.strip())
    return None if match is None else normalise(match["unit"])


def shuffled_item(question: str, answer: str, wrong: Iterable[str], rng: random.Random) -> Item:
    """An item whose options stand in random order."""
    options = [answer, *wrong]
    rng.shuffle(options)
    return Item(question, tuple(options), options.index(answer))


def read_choices(path: str | Path, seed: int = 0) -> list[Item]:
    """Items of a JSON-lines file: `{"question", "options", "answer"}`, or `{"term", "meaning"}` of a glossary.

    `answer` is the right option or its index from 0. A glossary's items ask for the term, among
    three other terms drawn with `seed`. Rows whose `split` is `train` are left out where there are others.

    Raises:
        InputError: A row (named) is neither, or a glossary has fewer than four terms.
    """
    numbered = list(enumerate(read_jsonl(path), 1))
    rows = [(number, row) for number, row in numbered if row.get("split") != "train"] or numbered
    terms = list(dict.fromkeys(str(row["term"]) for _, row in rows if "term" in row))
    if terms and len(terms) < NUM_OPTIONS:
        raise InputError(f"{path} has {len(terms)} terms; a glossary needs at least {NUM_OPTIONS} to choose from")
    rng = random.Random(seed)
    return [_item(row, terms, rng, f"{path}, row {number}") for number, row in rows]


def _item(row: dict[str, Any], terms: list[str], rng: random.Random, place: str) -> Item:
    """The item of one row."""
    if "term" in row and "meaning" in row:
        others = {normalise(term): term for term in rng.sample(terms, min(len(terms), 2 * NUM_OPTIONS))}
        others.pop(normalise(row["term"]), None)
        return shuffled_item(f"Which term means: {row['meaning']}?", row["term"], list(others.values())[: NUM_OPTIONS - 1], rng)
    options, answer = row.get("options"), row.get("answer")
    if "question" not in row or not isinstance(options, list) or len(options) < 2:
        raise InputError(f"{place} needs `question`, `options` (two or more) and `answer`, or `term` and `meaning`")
    index = options.index(answer) if answer in options else answer
    if not isinstance(index, int) or not 0 <= index < len(options):
        raise InputError(f"{place}: answer {answer!r} is neither an option nor an index in [0, {len(options) - 1}]")
    return Item(row["question"], tuple(map(str, options)), index)


LENGTHS: dict[str, Callable[[str, list[int]], int]] = {
    "characters": lambda option, tokens: len(option),
    "tokens": lambda option, tokens: len(tokens),
    "nothing": lambda option, tokens: 1,
}
