"""The data types of the codec: a tile is geometry, a block is what is stored in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quasitile.codec.structure import Structure

if TYPE_CHECKING:
    from quasitile.codec.axes import Axes


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
    """What a tile stores: a rank block (paper Eq. 3), a residual, or both.

    The tile it stands for is `F_P^-1 (left * scale) (F_Q^-1 right)^T`, where F is the orthonormal
    transform of paper 3.2.1, plus `residual_step * G_P^-1 residual G_Q^-T` with the residual's own
    transform G. Rank 0 without residual is a tile of zeros.

    Attributes:
        left: (P, R) spectral coefficients of U in units of the rounding step; whole numbers in
            what is stored.
        right: (Q, R) spectral coefficients of V, likewise.
        scale: (R,) the product of both steps, a value a component.
        remainders: What rounding took away from each code, in steps between -0.5 and 0.5, in the
            order of `codes`. Not part of the model: training starts from it.
        residual: (P, Q) codes of what the factors leave, or nothing.
        residual_step: What one unit of them is worth.
    """

    left: Tensor
    right: Tensor
    scale: Tensor
    remainders: Tensor | None = None
    residual: Tensor | None = None
    residual_step: float = 0.0

    @property
    def rank(self) -> int:
        """R."""
        return self.left.shape[1]

    def codes(self) -> Tensor:
        """All codes in one row: left components one after another, then right ones, then the residual row by row."""
        row = symbols(self.left, self.right)
        return row if self.residual is None else torch.cat([row, self.residual.flatten()])

    @property
    def num_codes(self) -> int:
        """How many codes there are."""
        return self.left.numel() + self.right.numel() + (0 if self.residual is None else self.residual.numel())


def empty_block(tile: Tile) -> Block:
    """A block of rank 0."""
    rows, columns = tile.shape
    return Block(torch.zeros(rows, 0), torch.zeros(columns, 0), torch.zeros(0))


def row_bands(tiling: Tiling) -> list[list[Tile]]:
    """Tiles grouped by their rows, each group ordered by columns."""
    bands: dict[tuple[int, int], list[Tile]] = {}
    for tile in tiling.tiles:
        bands.setdefault((tile.row_start, tile.row_stop), []).append(tile)
    return [sorted(band, key=lambda tile: tile.column_start) for band in bands.values()]


def symbols(left: Tensor, right: Tensor) -> Tensor:
    """The coefficients of both factors in one row: left components one after another, then right ones."""
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
        transform: Of the factors, a name in `quasitile.codec.spectrum.TRANSFORMS`.
        row_scales: (M,) uint8; row i of the tiled matrix is row i of the weight times
            `scale_values(row_scales)[i]`.
        column_scales: (N,) uint8, likewise for columns.
        residual_transform: Of the residual.
        num_states: Of the trellis that the residual's codes are a path of, see `machine`; its step is then half of
            what ordinary rounding has. 1 for none.
        structure: How the weight is expanded from the tiled matrix, or nothing where it is that
            matrix. No part of the bytes that `packing` writes.
        axes: What the columns of the tiled matrix stand for, see `quasitile.codec.axes`; nothing for
            the matrix' own.
    """

    tiling: Tiling
    blocks: list[Block]
    transform: str
    row_scales: Tensor
    column_scales: Tensor
    residual_transform: str = "identity"
    num_states: int = 1
    structure: Structure | None = None
    axes: Axes | None = None
