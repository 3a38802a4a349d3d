"""A stored matrix to dense weights, some rows at a time, in threads and within bounded memory.

M rows, N columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from quasitile.codec.stored import StoredMatrix
from quasitile.codec.structure import Structure
from quasitile.errors import InputError

CHUNK_NUMBERS = 1 << 20  # decoded together, in row bands


@contextmanager
def named(name: str) -> Iterator[None]:
    """Say which matrix it was."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the stored matrix of {name} is damaged: {error}; copy the folder again") from error


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "decode")


def in_threads(decode, items: Iterable) -> Iterator[Tensor]:
    """Map, in as many threads as PyTorch has, never further ahead of what was taken than that."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield from map(decode, items)
        return
    waiting: deque[Future[Tensor]] = deque()
    for item in items:
        waiting.append(_pool(num_threads).submit(decode, item))
        if len(waiting) > num_threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def chunks(stored: StoredMatrix) -> list[tuple[int, int]]:
    """First tile and tile after the last of row bands that are decoded together."""
    found, width = [], stored.tiling.shape[1]
    start = stored.bands[0][0]
    tiles = stored.tiling.tiles
    for _, stop in stored.bands:
        if (tiles[stop - 1].row_stop - tiles[start].row_start) * width >= CHUNK_NUMBERS:
            found.append((start, stop))
            start = stop
    return found if start == len(tiles) else [*found, (start, len(tiles))]


def finite_rows(stored: StoredMatrix, chunk: tuple[int, int]) -> Tensor:
    """Rows (R, N) of a chunk, float32.

    Raises:
        ValueError: The bytes contradict themselves, or give NaN or infinite weights.
    """
    with torch.inference_mode(False), torch.no_grad():
        rows = stored.rows(*chunk)
        if not bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all()):
            raise ValueError("it holds weights that are not finite")
        return rows


def decode_weight(stored: StoredMatrix, structure: Structure | None, dtype: torch.dtype) -> Tensor:
    """The dense weight (M, N)."""
    with torch.inference_mode(False), torch.no_grad():
        shape = stored.tiling.shape
        whole = torch.empty(shape, dtype=dtype if structure is None else torch.float32)
        top = 0
        for rows in in_threads(lambda chunk: finite_rows(stored, chunk).to(whole.dtype), chunks(stored)):
            whole[top : top + len(rows)] = rows
            top += len(rows)
        return whole if structure is None else structure.expand(whole).to(dtype)
