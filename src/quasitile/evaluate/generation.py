"""Prompts, and greedy continuations of many prompts at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import GenerationConfig

from quasitile.errors import InputError
from quasitile.evaluate.batches import by_length, encode, inference, pad_token, padded, window_length

BEYOND = 8  # tokens more than the longest answer takes: one that goes on must not look right for being cut
THOUGHT = re.compile(r"<\|?think\|?>(.*?)(?:<\|?/think\|?>|\Z)", re.DOTALL)


class Answer(NamedTuple):
    """What a model answered, and the reasoning that it wrote around the answer."""

    text: str
    trace: str


def prompt(tokenizer: Any, question: str, context: str | None = None) -> str:
    """A question, after its context if there is one, as the tokenizer's chat template puts it to the model.

    A tokenizer without a chat template gets `Question: ...` and `Answer:` on two lines.
    """
    asked = question if context is None else f"{context}\n\n{question}"
    if tokenizer.chat_template is None:
        lead = "" if context is None else f"{context}\n\n"
        return f"{lead}Question: {question}\nAnswer:"
    messages = [{"role": "user", "content": asked}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def fitted_prompt(tokenizer: Any, question: str, context: str | None, max_tokens: int) -> tuple[str, bool]:
    """`prompt` in at most `max_tokens` tokens, and whether the context had to be cut.

    The context loses its beginning; the question is never touched.

    Raises:
        InputError: The question alone is too long.
    """
    whole = prompt(tokenizer, question, context)
    excess = len(encode(tokenizer, whole)) - max_tokens
    if excess <= 0:
        return whole, False
    tokens = encode(tokenizer, context or "")
    while tokens and excess > 0:
        # a cut can split a character or a merge, so that the prompt shrinks by less than was cut
        tokens = tokens[excess:]
        kept = tokenizer.decode(tokens, clean_up_tokenization_spaces=False).lstrip("\N{REPLACEMENT CHARACTER}")
        whole = prompt(tokenizer, question, kept or None)
        excess = len(encode(tokenizer, whole)) - max_tokens
    if excess > 0:
        raise InputError(f"the question {question[:60]!r} leaves no room in {max_tokens} tokens; shorten the question")
    return whole, True


def answer_limit(model: Any, tokenizer: Any, expected: Iterable[str]) -> int:
    """How many tokens a model may answer with: room for the longest expected answer, and a little for one that goes on.

    Never more than half of the model's window, the rest of which is for the question.
    """
    longest = max((len(encode(tokenizer, text)) for text in expected), default=0)
    return min(longest + BEYOND, window_length(model) // 2)


def generate_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int = 32
) -> list[Answer]:
    """Answer each prompt greedily, up to the end-of-text token.

    What stands between `<|think|>` and `<|/think|>` is the trace, wherever it stands; the rest is
    the answer. Without a chat template the answer ends with its line.

    Raises:
        ValueError: A prompt leaves no room for `max_new_tokens` in the model's window.
    """
    rows = greedy_tokens(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [split_trace(tokenizer, tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in rows]


def split_trace(tokenizer: Any, text: str) -> Answer:
    """Separate the answer from the reasoning in a continuation; a trace that is not closed runs to the end."""
    trace = " ".join(thought.strip() for thought in THOUGHT.findall(text))
    text = THOUGHT.sub(" ", text).strip()
    if tokenizer.chat_template is None:
        text = text.split("\n", 1)[0].strip()
    return Answer(text, trace)


def greedy_tokens(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int = 32
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token, without the token that ended it.

    Prompts of like length go together, padded on the left. Padding is masked, so that a batch gives
    what each prompt would give alone, up to rounding.

    Raises:
        ValueError: A prompt leaves no room for `max_new_tokens` in the model's window.
    """
    rows = [encode(tokenizer, text) for text in prompts]
    room = window_length(model) - max_new_tokens
    for row, text in zip(rows, prompts, strict=True):
        if not 0 < len(row) <= room:
            raise ValueError(f"the prompt {text[:60]!r} has {len(row)} tokens, outside [1, {room}]; use fitted_prompt")
    stops, pad = stop_tokens(model, tokenizer), pad_token(tokenizer)
    ends = sorted(stops) or None
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad)
    continuations: list[list[int]] = [[] for _ in rows]
    with inference(model) as device:
        for batch in by_length([len(row) for row in rows], batch_size):
            tokens, mask = padded([rows[index] for index in batch], pad, side="left")
            output = model.generate(input_ids=tokens.to(device), attention_mask=mask.to(device), generation_config=config)
            for index, new in zip(batch, output[:, tokens.shape[1] :].tolist(), strict=True):
                end = next((place for place, token in enumerate(new) if token in stops), len(new))
                continuations[index] = new[:end]
    return continuations


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a text: the tokenizer's and those of the model's generation settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    stops = configured if isinstance(configured, list) else [configured]
    return {token for token in (*stops, tokenizer.eos_token_id) if token is not None}
