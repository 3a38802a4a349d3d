"""Who is imitated: the original in memory, or what was recorded of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quasitile.align.record import Recording, Targets, is_recording
from quasitile.align.steps import half_precision, held_out_nats
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.runtime import load_model
from quasitile.runtime.device import CPU


class Teacher(Protocol):
    """Windows of text, and what the original makes of them."""

    windows: Tensor
    vocabulary_size: int

    def nats(self, rows: list[int]) -> float:
        """Nats a token of the original on some windows."""
        ...

    def targets(self, rows: list[int], hidden: bool) -> Targets:
        """What the original makes of some windows."""
        ...


class LiveTeacher:
    """The original in memory.

    Args:
        model: Loaded.
        windows: (W, T) token ids.
        in_half_precision: Compute in bf16.
    """

    def __init__(self, model: Any, windows: Tensor, in_half_precision: bool = True) -> None:
        self.model, self.windows, self.in_half_precision = model.requires_grad_(False), windows, in_half_precision
        self.vocabulary_size = int(model.config.vocab_size)

    def nats(self, rows: list[int]) -> float:
        """Nats a token of the original on some windows."""
        return held_out_nats(self.model, self.windows[rows])

    @torch.no_grad()
    def targets(self, rows: list[int], hidden: bool) -> Targets:
        """Logits, and hidden states where they are wanted."""
        with half_precision(self.model, self.in_half_precision):
            output = self.model(self.windows[rows], output_hidden_states=hidden, use_cache=False)
        return Targets(list(output.hidden_states) if hidden else None, output.logits)


def open_teacher(
    teacher: str | Path,
    tokenizer: Any,
    text: str | Path,
    num_tokens: int,
    seed: int,
    in_half_precision: bool,
    device: torch.device = CPU,
) -> Teacher:
    """The teacher that a folder holds, with the windows of the text.

    Args:
        teacher: The original, or a folder that `record` made, whose own windows count then.
        tokenizer: Of the student.
        text: General text.
        num_tokens: A window.
        seed: Of their order.
        in_half_precision: Compute in bf16.
        device: Where an original in memory computes.

    Raises:
        InputError: The recording's windows are of another length.
    """
    if is_recording(teacher):
        recording = Recording(teacher)
        length = recording.windows.shape[1]
        if length != num_tokens:
            raise InputError(f"{teacher} was recorded in windows of {length} tokens; set align.num_tokens={length}")
        return recording
    windows = token_windows(tokenizer, read_texts(text), num_tokens, 10**9, seed, from_end=True)
    return LiveTeacher(load_model(teacher, device=device)[0], windows, in_half_precision)
