"""Trellis-coded quantisation of the residual, with Cholesky feedback along every surviving path.

Two quantisers share the lattice of half steps: number 0 has its even points, number 1 its odd points
and zero. Which of them the next code of a row uses is decided by a state machine that the parities
of the codes before drive (Ungerboeck's convolutional codes), so each row chooses among paths through
a lattice twice as fine while it pays for the coarse one: up to a sixth of a bit a code. The Viterbi
search keeps one survivor a state; each carries its own rounding errors, which Cholesky feedback
hands to the columns still to be coded, and its cost counts damage and bits together.

Rows run from the last column of a tile to its first, and start in state 0 there, so that every tile
decodes alone. See docs/mathematics.md.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec.block import Tile, Tiling
from quasitile.codec.entropy import CODED_SPREADS, COLUMN_CENTRE, NUM_LEVELS, bit_table, code_bits, fit, spread_of
from quasitile.codec.machine import codes_of, machine

RATE_WEIGHT = 0.04  # squared half steps that a bit may cost; docs/mathematics.md says why not more
WIDTH, DEPTH = 64, 32  # columns a block; how many columns back paths may still differ
NEVER = 1e30


def search(
    target: Tensor, lower: Tensor | None, tiling: Tiling, step: float, num_states: int, rate_weight: float = RATE_WEIGHT
) -> tuple[Tensor, Tensor]:
    """The path of least damage and bits for every row.

    Args:
        target: (M, N); its dtype is that of the products.
        lower: (N, N) lower triangular with `H = L L^T`, for feedback between columns; nothing for none.
        tiling: At whose tiles' last columns rows start in state 0.
        step: Of both quantisers; points are half of it apart.
        num_states: Of the trellis, see `machine`.
        rate_weight: Squared half steps that a bit may cost.

    Returns:
        Points (M, N), and the values in half steps they were chosen for.
    """
    num_rows, num_columns = target.shape
    statistics = fit(np.asarray((target / step).round().to(torch.int64)))
    half = target / (step / 2)
    single = half.float().numpy()
    ends = np.zeros((num_rows, num_columns), np.bool_)
    for tile in tiling.tiles:
        ends[tile.rows, tile.column_stop - 1] = True
    column_levels = statistics.column_levels.astype(np.int64) - COLUMN_CENTRE
    states = machine(num_states)
    undecided = _Open(
        np.full((num_rows, num_states), NEVER, np.float32),
        np.zeros((num_rows, num_states, DEPTH), np.float32),
        np.zeros((num_rows, DEPTH, num_states), np.int32),
        np.zeros((num_rows, DEPTH, num_states), np.uint8),
    )
    undecided.costs[:, 0] = 0
    points, lost = torch.zeros(num_rows, num_columns, dtype=torch.int32), torch.zeros_like(half)
    relative = None if lower is None else (lower / lower.diagonal()).to(half.dtype)
    weights = np.ones(num_columns, np.float32) if lower is None else lower.diagonal().square().float().numpy()
    carried = 0
    for stop in range(num_columns, 0, -WIDTH):
        start = max(0, stop - WIDTH)
        keep = min(DEPTH, stop - start) if start else 0
        known = stop + carried  # columns from here on are decided
        moved, inner = half[:, start:stop], torch.zeros(stop - start, known - start)
        if relative is not None:
            moved = moved + lost[:, known:] @ relative[known:, start:stop]
            inner = relative[start:known, start:stop].T
        decided = np.zeros((num_rows, known - start), np.int32)
        missed = np.zeros((num_rows, known - start), np.float32)
        _advance(
            moved.float().numpy(),
            single[:, start:stop],
            np.ascontiguousarray(inner.float().numpy()),
            weights[start:stop],
            statistics.row_levels.astype(np.int64),
            column_levels[start:stop],
            *_prices(statistics.shape, rate_weight),
            ends[:, start:stop],
            states.sources,
            states.parities,
            undecided.costs,
            undecided.lost,
            undecided.points,
            undecided.sources,
            carried,
            keep,
            decided,
            missed,
        )
        points[:, start + keep : known] = torch.from_numpy(decided[:, keep:])
        lost[:, start + keep : known] = torch.from_numpy(missed[:, keep:])
        carried = keep
    return points, points + (lost if relative is None else lost @ relative)


def trellis_normal_bits(spread: Tensor, num_states: int) -> Tensor:
    """Bits a code of normal values of standard deviation `spread`, in steps: what `search` makes of samples, interpolated."""
    grid, bits = _sampled_normal(num_states)
    inside = np.interp(spread.double().clamp_min(1e-30).log2().numpy(), grid, bits)
    beyond = spread.double().clamp_min(1e-30).log2() - grid[-1]  # a doubled spread costs a bit
    return torch.from_numpy(inside) + beyond.clamp_min(0)


@cache
def _sampled_normal(num_states: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of spreads, and bits a code."""
    values = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    whole = Tiling(tuple(values.shape), (Tile(0, 64, 0, 128),))
    grid, bits = np.arange(-5.0, 6.0, 0.5), []
    for spread in 2.0**grid:
        points, _ = search(values * spread, None, whole, 1.0, num_states)
        codes, quantisers = codes_of(points.numpy(), num_states)
        bits.append(code_bits(codes, quantisers, fit(points.numpy(), num_states, quantisers)) / values.numel())
    return grid, np.array(bits)


class _Open(NamedTuple):
    """What is not decided yet: M rows, S survivors, K columns.

    Attributes:
        costs: (M, S) of each survivor.
        lost: (M, S, K) its errors in the columns that are open, leftmost first.
        points: (M, K, S) the lattice point that led to a state in a column.
        sources: (M, K, S) the state it came from.
    """

    costs: NDArray[np.float32]
    lost: NDArray[np.float32]
    points: NDArray[np.int32]
    sources: NDArray[np.uint8]


@cache
def _prices(
    shape: int, rate_weight: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Zero, other, slope and limits for `_advance`: bits as a square law through the codes 0 and 1, times their weight."""
    bits = bit_table(shape)
    slope = np.log2(np.e) / 8 / spread_of(np.arange(NUM_LEVELS)) ** 2
    other = bits[:, :, 1] - slope * np.array([[4.0], [1.0]])
    limits = (2 * CODED_SPREADS * spread_of(np.arange(NUM_LEVELS)) + 4) ** 2
    zero, other, slope, limits = (
        np.ascontiguousarray(price, np.float32)
        for price in (rate_weight * bits[:, :, 0], rate_weight * other, rate_weight * slope, limits)
    )
    return zero, other, slope, limits


@numba.njit(nogil=True, fastmath=True, cache=True)
def _dot(left, right):  # pragma: no cover
    """The sum of products; short enough that a call to a library would cost more."""
    total = np.float32(0)
    for i in range(len(left)):
        total += left[i] * right[i]
    return total


@numba.njit(nogil=True, fastmath=True, cache=True)
def _advance(moved, target, inner, weights, row_levels, column_levels, zero, other, slope, limits, ends, sources, parities,
             costs, lost_open, points_open, sources_open, carried, keep, points_out, lost_out):  # fmt: skip  # pragma: no cover
    """Search through the columns of a block, right to left, and decide all but the `keep` leftmost.

    Arrays:
        moved, target: (M, w) in half steps, with and without what decided columns lost.
        inner: (w, w + carried) of the scaled Cholesky factor.
        weights: (w,) what a squared half step costs in a column.
        row_levels, column_levels: (M,) and (w,), their sum is the level of a code.
        zero, other: (2, levels) price of zero, and of any other point less `slope` times its square.
        limits: (levels,) of the square.
        ends: (M, w) where a tile has its last column.
        costs, lost_open, points_open, sources_open: See `_Open`.
        carried: How many columns were open.
        points_out, lost_out: (M, w + carried) what is decided.
    """
    num_rows, width = moved.shape
    num_states = sources.shape[0]
    total = width + carried
    lost = np.zeros((num_states, total), np.float32)
    fresh = np.zeros((num_states, total), np.float32)
    points = np.zeros((total, num_states), np.int32)
    came = np.zeros((total, num_states), np.uint8)
    cost = np.zeros(num_states, np.float32)
    price = np.zeros((2, num_states), np.float32)
    point = np.zeros((2, num_states), np.float32)
    never, none, one, two, four = np.float32(NEVER), np.float32(0), np.float32(1), np.float32(2), np.float32(4)
    quarter, limit = np.float32(0.25), np.int64(zero.shape[1] - 1)
    for row in range(num_rows):
        cost[:] = costs[row]
        for s in range(num_states):
            for k in range(carried):
                lost[s, width + k] = lost_open[row, s, k]
                points[width + k, s] = points_open[row, k, s]
                came[width + k, s] = sources_open[row, k, s]
        for j in range(width - 1, -1, -1):
            first, after = 0, slice(j + 1, total)
            if ends[row, j]:  # the best survivor goes on alone, in state 0
                first = cost.argmin()
                cost[0] = cost[first]
                cost[1:] = never
                lost[0, after] = lost[first, after]
            level = min(max(row_levels[row] + column_levels[j], 0), limit)
            weight, rise, most = weights[j], slope[level], limits[level]
            for s in range(num_states):
                if cost[s] >= never:
                    price[0, s], price[1, s] = never, never
                    continue
                u = moved[row, j] + _dot(lost[s, after], inner[j, after])
                size = abs(u)
                q = s & 1
                if q == 0:  # even codes are multiples of 4, odd ones lie 2 beside
                    even = four * np.rint(u * quarter)
                    odd = four * np.rint((u - two) * quarter) + two
                else:  # 0, 3, 7, ... and 1, 5, ..., with both signs
                    even, odd = none, four * max(none, np.rint((size - one) * quarter)) + one
                    if size >= 1.5:
                        even = four * max(one, np.rint((size + one) * quarter)) - one
                    if u < 0:
                        even, odd = -even, -odd
                bits = zero[q, level] if even == 0 else other[q, level] + rise * min(even * even, most)
                price[0, s] = cost[s] + (u - even) * (u - even) * weight + bits
                price[1, s] = cost[s] + (u - odd) * (u - odd) * weight + other[q, level] + rise * min(odd * odd, most)
                point[0, s], point[1, s] = even, odd
            for n in range(num_states):
                s, p = sources[n, 0], parities[n, 0]
                if price[parities[n, 1], sources[n, 1]] < price[p, s]:
                    s, p = sources[n, 1], parities[n, 1]
                cost[n] = price[p, s]
                if cost[n] >= never:
                    continue
                came[j, n] = first if s == 0 else s
                points[j, n] = np.int32(point[p, s])
                fresh[n, j] = target[row, j] - point[p, s]
                fresh[n, after] = lost[s, after]
            lost, fresh = fresh, lost
        best = cost.argmin()
        least = cost[best]
        entry = np.int64(best)
        for i in range(keep):
            entry = np.int64(came[i, entry])  # where the best path enters the columns that stay open
        state = entry
        for i in range(keep, total):
            points_out[row, i] = points[i, state]
            lost_out[row, i] = lost[best, i]
            state = np.int64(came[i, state])
        for s in range(num_states):
            state = s
            costs[row, s] = never
            if cost[s] < never:
                for i in range(keep):
                    state = np.int64(came[i, state])
                if state == entry:
                    costs[row, s] = cost[s] - least
            for k in range(keep):
                lost_open[row, s, k] = lost[s, k]
                points_open[row, k, s] = points[k, s]
                sources_open[row, k, s] = came[k, s]
