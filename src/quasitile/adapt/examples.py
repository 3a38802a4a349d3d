"""Questions and text as padded batches with labels where there is something to learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quasitile.compress.windows import exchange

IGNORED = -100
Row = tuple[list[int], list[int]]  # token ids, and labels


class Expected(NamedTuple):
    """What a model expects of a question with its answer.

    Attributes:
        record: The question.
        logits: (T, V).
        labels: (T,), `IGNORED` where nothing is learned; padding too.
    """

    record: dict[str, Any]
    logits: Tensor
    labels: Tensor


def answer_tokens(tokenizer: Any, record: dict[str, Any], trace: str) -> Row:
    """Token ids of a record in the chat format, and labels on the assistant's turn alone.

    Args:
        tokenizer: With a chat template; without one, `Question: ...` and `Answer: ...`.
        record: A question record.
        trace: `none`, `before` or `after`: where the template puts the reasoning.
    """
    prompt, rest = exchange(tokenizer, record["messages"], trace)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest_ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return prompt_ids + rest_ids, [IGNORED] * len(prompt_ids) + rest_ids


def padded(rows: list[Row], pad: int, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded token ids, attention mask and labels, each (B, T); rows are cut at `limit` tokens."""
    length = min(limit, max(len(tokens) for tokens, _ in rows))
    tokens = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (ids, wanted) in enumerate(rows):
        count = min(length, len(ids))
        tokens[i, :count] = torch.tensor(ids[:count])
        labels[i, :count] = torch.tensor(wanted[:count])
        mask[i, :count] = 1
    return tokens, mask, labels


def unlabelled(row: Row) -> Row:
    """A row that nothing is learned of."""
    return row[0], [IGNORED] * len(row[1])


def num_wanted(labels: list[int]) -> int:
    """Labelled tokens of a row that have a token before them."""
    return sum(label != IGNORED for label in labels[1:])


def answer_loss(answers: list[Expected], num_tokens: int) -> Tensor:
    """Cross-entropy of the labelled tokens of answers, each predicted at the place before it.

    Args:
        answers: Any part of those of a step.
        num_tokens: That are labelled in all of them, so that the parts add up to nats a token.
    """
    logits = torch.cat([answer.logits[:-1] for answer in answers])
    labels = torch.cat([answer.labels[1:] for answer in answers]).to(logits.device)
    return cross_entropy(logits[labels != IGNORED].float(), labels[labels != IGNORED], reduction="sum") / num_tokens
