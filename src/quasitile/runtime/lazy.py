"""Lazy execution: weights are decoded when they are used, into a cache with a limit of bytes.

What has entered the cache stays. Layers are used in the same order in every pass, so that a cache
which dropped the least recently used would drop each part shortly before its next use; of a cache
that keeps the first parts it met, every pass finds as much as fits.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor, nn

from quasitile.codec.stored import StoredMatrix
from quasitile.codec.structure import Structure
from quasitile.runtime.decode import chunks, decode_weight, finite_rows, in_threads, named


class Cache:
    """Bytes that all lazy matrices of a model may keep together.

    Args:
        limit_bytes: Of decoded weights.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._lock = Lock()

    def admit(self, num_bytes: int) -> bool:
        """Whether so many more fit; if so they count."""
        with self._lock:
            if self.used_bytes + num_bytes > self.limit_bytes:
                return False
            self.used_bytes += num_bytes
            return True

    def give_back(self, num_bytes: int) -> None:
        """So many are no longer kept."""
        with self._lock:
            self.used_bytes -= num_bytes


class Lazy:
    """A matrix (M, N) of which only the stored bytes are held, and what the cache admits.

    Args:
        stored: The opened bytes.
        structure: See `CodedMatrix`; such a matrix is decoded as a whole.
        dtype: Of decoded weights.
        cache: Shared with the other matrices of the model.
        name: Of the layer, for messages.
    """

    def __init__(
        self, stored: StoredMatrix, structure: Structure | None, dtype: torch.dtype, cache: Cache, name: str = ""
    ) -> None:
        self.name = name
        self.stored, self.structure, self.dtype, self.cache = stored, structure, dtype, cache
        self.chunks = chunks(stored)
        self.kept: list[Tensor | None] = [None] * (1 if structure else len(self.chunks))

    @property
    def held_bytes(self) -> int:
        """Of decoded weights."""
        return sum(part.numel() * part.element_size() for part in self.kept if part is not None)

    def drop(self) -> None:
        """Keep nothing any more."""
        self.cache.give_back(self.held_bytes)
        self.kept = [None] * len(self.kept)

    def part(self, index: int, device: torch.device) -> Tensor:
        """Rows of a chunk, from the cache or decoded.

        Raises:
            InputError: The stored bytes contradict themselves.
        """
        part = self.kept[index]
        if part is None:
            with named(self.name):
                if self.structure is not None:
                    part = decode_weight(self.stored, self.structure, self.dtype, device)
                else:
                    part = finite_rows(self.stored, self.chunks[index], self.dtype, device)
            if self.cache.admit(part.numel() * part.element_size()):
                self.kept[index] = part
        return part

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`(..., N) -> (..., M)`; the next chunks are decoded while one is used."""
        parts = in_threads(lambda index: self.part(index, x.device), range(len(self.kept)))
        y = torch.cat([nn.functional.linear(x, part.to(x.dtype)) for part in parts], -1)
        return y if bias is None else y + bias

    def rows(self, indices: Tensor) -> Tensor:
        """Rows (..., N) of the weight; of what is not in the cache, no more than their row bands is decoded."""
        if self.structure is not None:
            return self.part(0, indices.device)[indices]
        flat = indices.flatten().cpu()
        tiles = self.stored.tiling.tiles
        out = torch.empty(len(flat), self.stored.tiling.shape[1], dtype=self.dtype, device=indices.device)
        bands = torch.tensor([tiles[first].row_start for first, _ in self.stored.bands])
        found = torch.searchsorted(bands, flat, right=True) - 1
        starts = [first for first, _ in self.chunks]
        for number in found.unique().tolist():
            band = self.stored.bands[number]
            index = sum(start <= band[0] for start in starts) - 1
            part, origin = self.kept[index], tiles[self.chunks[index][0]].row_start
            if part is None:
                with named(self.name):
                    part = finite_rows(self.stored, band, self.dtype, out.device)
                origin = tiles[band[0]].row_start
            wanted = (found == number).to(out.device)
            out[wanted] = part[(flat - origin).to(out.device)[wanted]]
        return out.view(*indices.shape, -1)

    def weight(self, device: torch.device) -> Tensor:
        """The weight (M, N)."""
        return torch.cat(list(in_threads(lambda index: self.part(index, device), range(len(self.kept)))))
