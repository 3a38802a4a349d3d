"""The data types of the codec: a tile is geometry, a block is what is stored in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A rectangle of row and column indices, stops excluded."""

    row_start: int
    row_stop: int
    column_start: int
    column_stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """(P, Q)."""
        return self.row_stop - self.row_start, self.column_stop - self.column_start

    @property
    def rows(self) -> slice:
        """Its rows as a slice."""
        return slice(self.row_start, self.row_stop)

    @property
    def columns(self) -> slice:
        """Its columns as a slice."""
        return slice(self.column_start, self.column_stop)


@dataclass(frozen=True)
class Tiling:
    """Tiles that cover every index of an M x N matrix exactly once."""

    shape: tuple[int, int]
    tiles: tuple[Tile, ...]

    def covers_exactly(self) -> bool:
        """Whether every index lies in exactly one tile."""
        count = torch.zeros(self.shape, dtype=torch.int32)
        for tile in self.tiles:
            count[tile.rows, tile.columns] += 1
        inside = all(0 <= t.row_start < t.row_stop <= self.shape[0] for t in self.tiles)
        inside = inside and all(0 <= t.column_start < t.column_stop <= self.shape[1] for t in self.tiles)
        return inside and bool((count == 1).all())


@dataclass
class Block:
    """A rank block (paper Eq. 3): two factors, each transformed along its long side and rounded.

    The tile it stands for is `F_P^-1 (left * scale) (F_Q^-1 right)^T`, where F is the orthonormal
    transform of paper 3.2.1. A rank of 0 is a tile of zeros.

    Attributes:
        left: (P, R) spectral coefficients of U in units of the rounding step; whole numbers in
            what is stored.
        right: (Q, R) spectral coefficients of V, likewise.
        scale: (R,) the product of both steps, a value a component.
        remainders: What rounding took away, `((P + Q) R,)` in steps between -0.5 and 0.5, in the
            order of the symbols (`symbols`). Not part of the model: training starts from it.
    """

    left: Tensor
    right: Tensor
    scale: Tensor
    remainders: Tensor | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.left.shape[1]


def symbols(left: Tensor, right: Tensor) -> Tensor:
    """All coefficients of a block in one row: left components one after another, then right ones."""
    return torch.cat([left.T.flatten(), right.T.flatten()])


def from_symbols(row: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """Left (P, R) and right (Q, R) from one row of `symbols`."""
    rank = len(row) // (num_rows + num_columns)
    left, right = row[: num_rows * rank].view(rank, num_rows).T, row[num_rows * rank :].view(rank, num_columns).T
    return left.contiguous(), right.contiguous()


@dataclass
class CodedMatrix:
    """Everything that is stored of one matrix.

    Attributes:
        tiling: Where the blocks lie.
        blocks: One block a tile.
        transform: A name in `quasitile.codec.spectrum.TRANSFORMS`.
        row_scales: (M,) uint8; row i of the tiled matrix is row i of the weight times
            `scale_values(row_scales)[i]`.
        column_scales: (N,) uint8, likewise for columns.
    """

    tiling: Tiling
    blocks: list[Block]
    transform: str
    row_scales: Tensor
    column_scales: Tensor
