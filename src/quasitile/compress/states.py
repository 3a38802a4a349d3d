"""Hidden states of the calibration text on disk: one file a layer, written and read in batches of windows.

W windows, B windows of a batch, T tokens, D hidden.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor


class StateWriter:
    """Writes (W, T, D) float32 batch by batch; the file appears when it is finished."""

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._out = self._partial.open("wb")
        self._hash = hashlib.sha256()

    def write(self, states: Tensor) -> None:
        """The next batch (B, T, D)."""
        data = states.detach().cpu().float().contiguous().flatten().view(torch.uint8).numpy().data
        self._hash.update(data)
        self._out.write(data)

    def finish(self) -> str:
        """Put the file in place; its checksum."""
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        os.replace(self._partial, self.path)
        return self._hash.hexdigest()


def read_states(path: Path, first: int, batch: Tensor, num_windows: int) -> Tensor:
    """The windows of a batch (B, T, D), read and not mapped.

    Args:
        path: Of the file.
        first: Number of the batch's first window.
        batch: (B, T) token ids.
        num_windows: W.
    """
    window_bytes = path.stat().st_size // num_windows
    count, num_tokens = batch.shape
    out = torch.empty(count, num_tokens, window_bytes // 4 // num_tokens)
    with path.open("rb") as data:
        data.seek(first * window_bytes)
        data.readinto(out.flatten().view(torch.uint8).numpy().data)
    return out
