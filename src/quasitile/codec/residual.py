"""The quantised remainder of a matrix: one whole number an entry, all worth the same damage.

In the scaled domain (see `factors`) with `H = L L^T`, a column's error costs `L_jj^2` times its
square once the columns before it have made up for what they can; so columns are scaled by `L_jj`
and one step serves all entries of all matrices (docs/mathematics.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quasitile.codec.block import Tiling
from quasitile.codec.spectrum import PLAIN, Truncation, basis, num_kept, round_with_dead_zone


def feedback_codes(
    target: Tensor, lower: Tensor, step: float, threshold: float = 0.5, width: int = 32, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round columns from last to first, each corrected for what later ones lost (Cholesky feedback).

    The error `E` obeys `(E L)_j = (t_j - w_j) L_jj` with `t_j` the corrected column, so each entry of
    `E L` is a rounding error of its own: what GPTQ does, in the form that shows the step. The second
    half of the columns is rounded, its errors are handed to the first half in one product, and so on
    inside both, so that nearly all work is in large products.

    Args:
        target: (M, N); its dtype is that of the arithmetic. In float32 no error grows: each column is
            rounded from what the columns before it really lost.
        lower: (N, N) lower triangular with `H = L L^T`.
        step: Of every column.
        threshold: Dead zone in steps.
        width: Columns that are corrected one by one; changes the speed only.
        kept: (M, N) which entries there are; all others are 0.

    Returns:
        Codes (M, N), and the values in steps (M, N) that they were rounded from.
    """
    lower = lower.to(target.dtype)
    ratio = lower / lower.diagonal()
    exact = (target / step).T.contiguous()  # (N, M): a column of the matrix in one piece, and everything in steps
    errors, codes = exact.clone(), torch.empty_like(exact)

    for start, stop, later in in_halves(0, len(exact), width):
        if later > stop:
            exact[start:stop].addmm_(ratio[stop:later, start:stop].T, errors[stop:later])
            continue
        for j in range(stop - 1, start - 1, -1):
            if j + 1 < stop:
                exact[j].addmv_(errors[j + 1 : stop].T, ratio[j + 1 : stop, j])
            if kept is not None:
                exact[j] *= kept[:, j]
            codes[j] = round_with_dead_zone(exact[j], threshold)
            errors[j] -= codes[j]
    return codes.T, exact.T


def in_halves(start: int, stop: int, width: int) -> Iterator[tuple[int, int, int]]:
    """What `feedback_codes` does to columns, in order.

    Yields:
        (a, b, b): round columns a to b, at most `width` of them; (a, b, c): hand the errors of columns b to c to a to b.
    """
    if stop - start <= width:
        yield start, stop, stop
        return
    middle = (start + stop) // 2
    yield from in_halves(middle, stop, width)
    yield start, middle, stop
    yield from in_halves(start, middle, width)


def kept_entries(rest: Tensor, part: str, share: float) -> Tensor | None:
    """Which entries of a residual are stored at all, (M, N), or nothing for all of them.

    Args:
        rest: (M, N) in the scaled domain, where a magnitude is a weight's times its gradient's.
        part: `rows` for those of the largest mean magnitude (LoSparse's neurons), `entries` for the
            largest, or `all`.
        share: Of all entries; rounded up to a whole row or entry.
    """
    if part == "all":
        return None
    importance = rest.abs().mean(1) if part == "rows" else rest.abs().flatten()
    keep = torch.zeros(len(importance), dtype=torch.bool)
    keep[importance.argsort(descending=True, stable=True)[: num_kept(len(importance), share)]] = True
    return keep[:, None].expand(rest.shape) if part == "rows" else keep.view(rest.shape)


def spectral_codes(
    target: Tensor, tiling: Tiling, transform: str, lower: Tensor, step: float, truncation: Truncation = PLAIN
) -> tuple[Tensor, Tensor]:
    """Round the spectrum of each tile (paper 3.2.1, two-dimensional), with feedback between column bands.

    Args:
        target: (M, N).
        tiling: Whose tiles are transformed, each by itself.
        transform: See `quasitile.codec.spectrum.TRANSFORMS`.
        lower: As for `feedback_codes`.
        step: Of every coefficient.
        truncation: What is dropped, tile by tile.

    Returns:
        Codes (M, N) and the values in steps they were rounded from (see `Truncation.codes`), in the place of their tiles.
    """
    errors, codes, exact = torch.zeros_like(target), torch.zeros_like(target), torch.zeros_like(target)
    for tile in sorted(tiling.tiles, key=lambda tile: -tile.column_start):
        rows, columns = tile.rows, tile.columns
        moved = target[rows, columns]
        if tile.column_stop < target.shape[1]:
            later = errors[rows, tile.column_stop :] @ lower[tile.column_stop :, columns]
            moved = moved + torch.linalg.solve_triangular(lower[columns, columns], later, upper=False, left=False)
        down, across = (basis(transform, size, target.dtype) for size in tile.shape)
        codes[rows, columns], exact[rows, columns] = truncation.codes(down @ moved @ across.T / step, num_axes=2)
        errors[rows, columns] = target[rows, columns] - step * (down.T @ codes[rows, columns] @ across)
    return codes, exact
