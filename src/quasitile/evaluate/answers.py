"""Scoring short answers: SQuAD's exact match and token F1, with numbers and units left whole."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from quasitile.evaluate.batches import window_length
from quasitile.evaluate.generation import Answer, answer_limit, fitted_prompt, generate_answers, prompt

__all__ = ["Answer", "answer_report", "ask", "exact_match", "generate_answers", "normalise", "prompt", "token_f1"]

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
DASHES = str.maketrans(dict.fromkeys("\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{MINUS SIGN}", "-"))

# In order. What SQuAD's script deletes as punctuation carries meaning next to a digit: 1.55, -3, 10^3, 13 %.
NUMBER_RULES = [
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),  # 1,200 -> 1200
    (re.compile(r"(?<=\d),(?=\d)"), " "),  # 1,2 -> 1 2
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0."),  # .5 -> 0.5
    (re.compile(r"(?<=\d) *(?:-|\bto\b) *(?=\d)"), "-"),  # 12.8 - 13.0 -> 12.8-13.0
    (re.compile(r"(?<=\d) *[×x·*] *(?=10\^?-?\d)"), "x"),  # 1.2 × 10^3 -> 1.2x10^3
    (re.compile(r"(?<![\w.^])(\d+(?:\.\d+)?)(?=[^\W\d_])(?!x10)"), r"\1 "),  # 1.55ev -> 1.55 ev
    (re.compile(r"\bper ?cent\b|%"), " % "),
    (re.compile(r"(?<!\d)\^"), ""),  # cm^2 -> cm2, but 10^2 stays
]
PUNCTUATION = re.compile(r"""(?<!\d)\.|\.(?!\d)|-(?!\d)|[!"#$&'()*+,/:;<=>?@\[\\\]_`{|}~‘’“”]""")
ARTICLES = re.compile(r"(?<!\d )\b(?:a|an|the)\b")  # but "5 A" is a current


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """Lower case without punctuation, articles and superfluous spaces, as SQuAD's script has it.

    Unlike there, a number stays a number: its decimal point, minus, exponent and percent sign are
    kept, thousands lose their comma, and a space separates it from its unit. So `1.55eV` equals
    `1.55 ev`, and `1.5` is not `15`.
    """
    text = " ".join(plain_characters(text).lower().split())
    for pattern, replacement in NUMBER_RULES:
        text = pattern.sub(replacement, text)
    return " ".join(ARTICLES.sub(" ", " ".join(PUNCTUATION.sub("", text).split())).split())


def plain_characters(text: str) -> str:
    """Text with one character for each meaning: superscripts as `^`, every dash and minus as `-`, NFKC for the rest."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda match: "^" + match[0].translate(SUPERSCRIPTS), text)
    return unicodedata.normalize("NFKC", text).translate(DASHES)


def exact_match(given: str, accepted: Iterable[str]) -> float:
    """1 where an answer equals one of the accepted ones after normalisation, else 0."""
    return float(normalise(given) in {normalise(answer) for answer in accepted})


def token_f1(given: str, accepted: Iterable[str]) -> float:
    """The harmonic mean of precision and recall over words, the best over the accepted answers."""
    return max((_overlap_f1(normalise(given).split(), normalise(answer).split()) for answer in accepted), default=0.0)


def _overlap_f1(given: list[str], answer: list[str]) -> float:
    """F1 of two bags of words; two empty ones agree."""
    if not given or not answer:
        return float(given == answer)
    shared = (Counter(given) & Counter(answer)).total()
    return 2 * shared / (len(given) + len(answer))


def ask(
    model: Any, tokenizer: Any, records: Sequence[dict[str, Any]], contexts: Sequence[str | None], *,
    max_new_tokens: int | None = None, traced: bool = False, batch_size: int = 32,
) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
    """Ask questions, with a context each (open book) or without (closed book), and score the answers.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        records: Question records (`reading/questions.jsonl`).
        contexts: One a record, or `None`. A context that is too long loses its beginning.
        max_new_tokens: The longest answer, trace included; `None` for as many as the longest accepted one takes, and
            some more (`answer_limit`).
        traced: Where it is `None`, leave room for the longest trace of the records as well.
        batch_size: Questions in one batch.

    Returns:
        One row a question (`evaluation/answers.jsonl` without `model` and `book`), and the number
        of contexts that were cut.
    """
    if max_new_tokens is None:
        max_new_tokens = answer_limit(model, tokenizer, expected_texts(records, traced))
    room = window_length(model) - max_new_tokens
    fitted = [
        fitted_prompt(tokenizer, question_of(record), context, room) for record, context in zip(records, contexts, strict=True)
    ]
    answers = generate_answers(
        model, tokenizer, [text for text, _ in fitted], max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    rows = [answer_row(record, answer) for record, answer in zip(records, answers, strict=True)]
    return rows, sum(was_cut for _, was_cut in fitted)


def question_of(record: dict[str, Any]) -> str:
    """The question of a record: its last user message."""
    return next(message["content"] for message in reversed(record["messages"]) if message["role"] == "user")


def answer_of(record: dict[str, Any]) -> str:
    """The expected answer of a record: its last assistant message."""
    return answer_message(record)["content"]


def answer_message(record: dict[str, Any]) -> dict[str, Any]:
    """The last assistant message of a record."""
    return next(message for message in reversed(record["messages"]) if message["role"] == "assistant")


def accepted_of(record: dict[str, Any]) -> list[str]:
    """Every accepted answer of a record, the expected one first."""
    expected = answer_of(record)
    return [expected, *(answer for answer in record["metadata"].get("accepted", []) if answer != expected)]


def expected_texts(records: Iterable[dict[str, Any]], traced: bool) -> Iterator[str]:
    """Every accepted answer of all records, with the record's trace where one is expected."""
    for record in records:
        trace = answer_message(record).get("reasoning_content") if traced else None
        yield from (f"{trace} {answer}" if trace else answer for answer in accepted_of(record))


def answer_row(record: dict[str, Any], given: Answer) -> dict[str, Any]:
    """What was asked, expected and given, with its scores."""
    metadata, accepted = record["metadata"], accepted_of(record)
    return {
        "split": metadata["split"],
        "id": metadata["id"],
        "question": question_of(record),
        "answer": accepted[0],
        "accepted": accepted,
        "given": given.text,
        "trace": given.trace,
        "exact_match": exact_match(given.text, accepted),
        "token_f1": token_f1(given.text, accepted),
        "evidence": metadata["evidence"]["text"],
    }


def answer_report(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean `exact_match` and `token_f1`, and `num_questions`, of scored rows.

    Raises:
        ValueError: There is no row.
    """
    if not rows:
        raise ValueError("rows is empty; report on at least one answer")
    means = {key: sum(row[key] for row in rows) / len(rows) for key in ("exact_match", "token_f1")}
    return {**means, "num_questions": len(rows)}
