"""How rows of token ids become batches: the window, padding, and rows of like length together.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quasitile.runtime import held_weights, inference_mode


@contextmanager
def inference(model: Any) -> Iterator[torch.device]:
    """Run a block in eval and inference mode, weights unchanged, and yield the model's device; the mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with inference_mode(model), held_weights(model):
            yield next(model.parameters()).device
    finally:
        model.train(was_training)


def window_length(model: Any, length: int | None = None) -> int:
    """The tokens the model can see at once, at most `length`."""
    limits = [length, getattr(model.config, "max_position_embeddings", None)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else 2048


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text alone, without the tokenizer's special tokens."""
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def start_token(tokenizer: Any) -> int:
    """The token that stands before a text: the beginning-of-text token, else the end-of-text one.

    Raises:
        ValueError: The tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has no bos_token and no eos_token; set one in tokenizer_config.json")


def pad_token(tokenizer: Any) -> int:
    """The token that fills rows up. It is always masked, so any token will do."""
    return start_token(tokenizer) if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def padded(rows: Sequence[Sequence[int]], pad: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Rows of token ids as one (B, T) tensor, and its (B, T) mask with 1 where a token is real."""
    longest = max(map(len, rows))
    tokens, mask = [], []
    for row in rows:
        fill = longest - len(row)
        before, after = (fill, 0) if side == "left" else (0, fill)
        tokens.append([pad] * before + list(row) + [pad] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return torch.tensor(tokens), torch.tensor(mask)


def by_length(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Indices in batches of like length, longest first, so that little is padded.

    Args:
        lengths: The number of tokens of each row.
        batch_size: The most rows of a batch.
        max_tokens: The most tokens of a batch, padding included; a longer row stands alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = bool(batches) and len(batches[-1]) < batch_size
        if room and max_tokens is not None:
            room = (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens
        if room:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def like_lengths(lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Indices in as many batches as cost least, rows of like length together.

    A batch costs its tokens, padding included, and `pass_tokens`. Over all ways to cut the rows, sorted by length.

    Args:
        lengths: The number of tokens of each row.
        pass_tokens: What one more pass through the model costs, in tokens.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    costs, starts = [0], [0]  # of the first rows, best; where the last of their batches starts
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, start = min((costs[start] + longest * (end - start) + pass_tokens, start) for start in range(end))
        costs.append(cost)
        starts.append(start)
    batches, end = [], len(order)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches
