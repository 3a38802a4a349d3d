"""The axes that a matrix' columns are coded in: sorted columns, a free transform, or a stored Karhunen-Loeve basis.

Columns are cut into bands, and each band has an orthonormal matrix B whose rows are its axes. What is tiled, scaled,
rounded and fed back is `W B^T`, with the second moment `B H B^T`; decoding multiplies by B. Damage does not depend on the
axes, the bytes do: along the eigenvectors of the inputs' second moment most axes hardly matter and take few bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from quasitile.codec.block import Tiling
from quasitile.codec.spectrum import TRANSFORMS, basis

SORTED, KLT = "sorted", "klt"
AXES = (SORTED, KLT, *(name for name in TRANSFORMS if name != "identity"))
SPANS = ("band", "matrix")
MAX_BASIS_CODE = 127
LEAST_SINGULAR_VALUE = 1e-3  # of stored codes, against their mean: below it they are no basis


@dataclass(frozen=True)
class Axes:
    """Orthonormal axes of each band of columns.

    Attributes:
        kind: One of `AXES`. `sorted` only permutes the columns; the decoder knows how from their scales (`order_of_scales`).
        widths: Columns of each band; their sum is N.
        codes: Of `klt`, a matrix of whole numbers a band: see `basis_from_codes`. Of `sorted`, which column comes when (N,).
        shared: Whether another matrix stores the codes.
    """

    kind: str
    widths: tuple[int, ...]
    codes: tuple[Tensor, ...] = ()
    shared: bool = False

    def matrices(self) -> list[Tensor]:
        """B of every band, float64."""
        if self.kind == KLT:
            return [_kept(codes) for codes in self.codes]
        if self.kind == SORTED:
            return [torch.eye(width, dtype=torch.float64)[order] for width, order in zip(self.widths, self.codes, strict=True)]
        return [basis(self.kind, width, torch.float64) for width in self.widths]

    def coefficients(self, rows: Tensor) -> Tensor:
        """(M, N) along these axes, in the dtype of `rows`."""
        if self.kind == SORTED:
            return rows[:, self.codes[0]]
        parts = zip(rows.split(self.widths, 1), self.matrices(), strict=True)
        return torch.cat([part @ each.to(rows).T for part, each in parts], 1)

    def entries(self, coefficients: Tensor) -> Tensor:
        """Back from `coefficients`."""
        if self.kind == SORTED:
            return coefficients[:, self.codes[0].argsort()]
        parts = zip(coefficients.split(self.widths, 1), self.matrices(), strict=True)
        return torch.cat([part @ each.to(coefficients) for part, each in parts], 1)

    def moment(self, second_moment: Tensor) -> Tensor:
        """A second moment (N, N) along these axes."""
        return self.coefficients(self.coefficients(second_moment).T).T


def pivoted_order(moment: Tensor, block: int = 32) -> Tensor:
    """Columns such that each has about the largest variance of those left, given the columns before it.

    The pivots of Cholesky's decomposition, chosen so many at a time.

    Args:
        moment: (N, N) positive definite.
        block: How many columns are chosen before the others' variances are computed again.
    """
    left, order = moment.double().clone(), torch.zeros(0, dtype=torch.long)
    open_ = torch.ones(len(moment), dtype=torch.bool)
    while len(order) < len(moment):
        variance = left.diagonal().masked_fill(~open_, -torch.inf)
        chosen = variance.argsort(descending=True, stable=True)[: min(block, int(open_.sum()))]
        order, open_[chosen] = torch.cat([order, chosen]), False
        lower, info = torch.linalg.cholesky_ex(left[chosen][:, chosen])
        if int(info):  # nothing certain is left of the others
            rest = variance.masked_fill(~open_, -torch.inf).argsort(descending=True, stable=True)
            return torch.cat([order, rest[: int(open_.sum())]])
        across = torch.linalg.solve_triangular(lower, left[chosen], upper=False)
        left -= across.T @ across
    return order


def order_of_scales(codes: Tensor) -> Tensor:
    """The order of columns whose scales fall, equal ones as they stand."""
    return codes.long().argsort(descending=True, stable=True)


def basis_codes(axes: Tensor) -> Tensor:
    """Whole numbers that stand for an orthonormal matrix (n, n): entries in steps of half their root mean square."""
    return (axes * 2 * math.sqrt(len(axes))).round().clamp(-MAX_BASIS_CODE, MAX_BASIS_CODE)


def basis_from_codes(codes: Tensor) -> Tensor:
    """The orthonormal matrix nearest to whole numbers (its polar factor), float64.

    Raises:
        ValueError: They are of no full rank, or nearly so.
    """
    u, values, vh = torch.linalg.svd(codes.double())
    if not float(values[-1]) > LEAST_SINGULAR_VALUE * float(values.mean()):
        raise ValueError("its stored axes are linearly dependent")
    return u @ vh


@lru_cache(maxsize=8)
def _kept(codes: Tensor) -> Tensor:
    """`basis_from_codes` of a tensor that is used again and again; tensors are told apart by identity."""
    return basis_from_codes(codes)


def chosen_axes(kind: str, span: str, second_moment: Tensor, tiling: Tiling) -> Axes:
    """Axes for a matrix.

    Args:
        kind: One of `AXES` but `sorted`. `klt` takes the eigenvectors of each band's second moment, largest first.
        span: One of `SPANS`: bands are the columns of the first row of tiles, or there is one.
        second_moment: (N, N) of the inputs.
        tiling: Of the matrix.
    """
    top = tiling.tiles[0].row_start
    first = sorted((tile for tile in tiling.tiles if tile.row_start == top), key=lambda tile: tile.column_start)
    widths = tuple(tile.shape[1] for tile in first) if span == "band" else (tiling.shape[1],)
    if kind != KLT:
        return Axes(kind, widths)
    codes, start = [], 0
    for width in widths:
        inner = second_moment[start : start + width, start : start + width].double()
        vectors = torch.linalg.eigh(inner)[1].flip(1).T
        rounded = basis_codes(vectors)
        scale = torch.linalg.svdvals(rounded)
        if not float(scale[-1]) > LEAST_SINGULAR_VALUE * float(scale.mean()):  # a coarse step made rows alike
            rounded = torch.eye(width, dtype=torch.float64)
        codes.append(rounded)
        start += width
    return Axes(kind, widths, tuple(codes))
