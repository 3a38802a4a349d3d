"""A stored matrix to dense weights, some rows at a time, in threads and within bounded memory.

M rows, N columns.
"""

from __future__ import annotations

import os
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
from quasitile.runtime.accelerate import kernels_for
from quasitile.runtime.device import CPU

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


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has the pool, but not its threads


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


def finite_rows(
    stored: StoredMatrix, chunk: tuple[int, int], dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Tensor:
    """Rows (R, N) of a chunk.

    Raises:
        ValueError: The bytes contradict themselves, or give NaN or infinite weights.
    """
    with torch.inference_mode(False), torch.no_grad():
        top, bottom = row_range(stored, chunk)
        rows = torch.empty(bottom - top, stored.tiling.shape[1], dtype=dtype, device=device)
        write_rows(stored, chunk, rows)
        return rows


def row_range(stored: StoredMatrix, chunk: tuple[int, int]) -> tuple[int, int]:
    """First row of a chunk, and the row after its last."""
    return stored.tiling.tiles[chunk[0]].row_start, stored.tiling.tiles[chunk[1] - 1].row_stop


def write_rows(stored: StoredMatrix, chunk: tuple[int, int], out: Tensor) -> None:
    """Decode a chunk into `out` (R, N): streams on the processor, scales on the device of `out` where it has kernels."""
    kernels = kernels_for(out)
    if kernels is None or not stored.plain(*chunk):
        write_there(stored, chunk, out)
        return
    points, (rows, columns, order) = torch.from_numpy(stored.points(*chunk)), stored.scales(*chunk)
    least, most = torch.aminmax(points)
    largest = torch.stack([-least, most]).max().float() * stored.step / rows.min() / columns.min()
    if not bool(torch.isfinite(largest)):  # perhaps no weight is infinite: look at each
        write_there(stored, chunk, out)
        return
    narrow = torch.int8 if int(least) >= -128 and int(most) < 128 else torch.int32
    moved = [None if part is None else part.to(out.device) for part in (points.to(narrow), rows, columns, order)]
    kernels.dequantise(moved[0], stored.step, *moved[1:], out)


def write_there(stored: StoredMatrix, chunk: tuple[int, int], out: Tensor) -> None:
    """Decode a chunk on the CPU, and copy it to `out` (R, N) where that is elsewhere."""
    rows = out if out.device == CPU else torch.empty(out.shape, dtype=out.dtype)
    stored.write_rows(*chunk, rows)
    if rows is not out:
        out.copy_(rows)


def decode_weight(stored: StoredMatrix, structure: Structure | None, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """The dense weight (M, N)."""
    with torch.inference_mode(False), torch.no_grad():
        expanded = dtype if structure is None else torch.float32
        whole = torch.empty(stored.tiling.shape, dtype=expanded, device=device if structure is None else CPU)

        def write(chunk: tuple[int, int]) -> Tensor:
            with torch.inference_mode(False), torch.no_grad():  # of this thread
                rows = whole[slice(*row_range(stored, chunk))]
                write_rows(stored, chunk, rows)
                return rows

        for _ in in_threads(write, chunks(stored)):
            pass
        return whole if structure is None else structure.expand(whole).to(dtype).to(device)
