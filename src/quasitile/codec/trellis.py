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

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec.block import Tile, Tiling
from quasitile.codec.entropy import CODED_SPREADS, COLUMN_CENTRE, NUM_LEVELS, bit_table, code_bits, fit, spread_of
from quasitile.codec.machine import codes_of, machine

RATE_WEIGHT = 0.04  # squared half steps that a bit may cost; docs/mathematics.md says why not more
WIDTH = 64  # columns a block
DEPTHS = {1: 8, 4: 32, 8: 40, 16: 64, 32: 80, 64: 96}  # by states: how many columns back paths may still differ
ROWS = 64  # at a time
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
    ends = np.zeros((num_rows, num_columns), np.bool_)
    for tile in tiling.tiles:
        ends[tile.rows, tile.column_stop - 1] = True
    column_levels = statistics.column_levels.astype(np.int64) - COLUMN_CENTRE
    states, depth = machine(num_states), DEPTHS[num_states]
    num_groups = -(-num_rows // ROWS)
    costs = np.full((num_groups, num_states, ROWS), NEVER, np.float32)
    costs[:, 0] = 0
    undecided = np.zeros((num_groups, num_states, depth, ROWS), np.float32)
    lost = torch.zeros(num_rows, num_columns)
    relative = None if lower is None else (lower / lower.diagonal()).float()
    weights = np.ones(num_columns, np.float32) if lower is None else lower.diagonal().square().float().numpy()
    single = half.float()
    exact = single if relative is None else single.clone()
    for stop in range(num_columns, 0, -WIDTH):
        start = max(0, stop - WIDTH)
        known = min(stop + depth, num_columns)  # columns from here on are decided
        inner = np.zeros((stop - start, WIDTH + 2 * depth), np.float32)
        if relative is not None:
            exact[:, start:stop].addmm_(lost[:, known:], relative[known:, start:stop])
            inner[:, : known - start] = relative[start:known, start:stop].T.numpy()
        first = 0 if start == 0 else start + depth
        decided = np.zeros((num_rows, max(0, known - first)), np.float32)
        _advance(
            exact[:, start:stop].numpy(),
            single[:, start:stop].numpy(),
            inner,
            weights[start:stop],
            statistics.row_levels.astype(np.int64),
            column_levels[start:stop],
            *_prices(statistics.shape, rate_weight),
            ends[:, start:stop],
            states.sources,
            states.parities,
            costs,
            undecided,
            start,
            known,
            first,
            decided,
        )
        if known > first:
            lost[:, first:known] = torch.from_numpy(decided)
    if relative is not None:
        for stop in range(num_columns, 0, -WIDTH):  # what `exact` still lacks, now that all is decided
            start, known = max(0, stop - WIDTH), min(stop + depth, num_columns)
            exact[:, start:stop].addmm_(lost[:, start:known], relative[start:known, start:stop].tril(-1))
    points = (single - lost).round().to(torch.int32)
    return points, exact.to(half.dtype)


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
    whole = Tiling((64, 128), (Tile(0, 64, 0, 128),))
    grid, bits = np.arange(-5.0, 6.0, 0.5), []
    for spread in 2.0**grid:
        points, _ = search(values * spread, None, whole, 1.0, num_states)
        codes, quantisers = codes_of(points.numpy(), num_states)
        bits.append(code_bits(codes, quantisers, fit(points.numpy(), num_states, quantisers)) / values.numel())
    return grid, np.array(bits)


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
def _advance(moved, target, inner, weights, row_levels, column_levels, zero, other, slope, limits, ends, sources, parities,
             costs, undecided, start, known, first, decided):  # fmt: skip  # pragma: no cover
    """Search through the columns of a block, right to left, `ROWS` rows at a time.

    A column is decided, by the best survivor, once it lies K behind; survivors that disagree there are dropped, so
    that errors further behind are the same for all. Every loop over rows is the innermost one and has no branch, so that
    the compiler makes vector instructions of it; of two survivors that meet, each row chooses by a mask.

    Arrays:
        moved, target: (M, w) in half steps, with and without what columns from `known` on lost.
        inner: (w, WIDTH + 2 K) of the scaled Cholesky factor from the block's first column on, padded with zeros.
        weights: (w,) what a squared half step costs in a column.
        row_levels, column_levels: (M,) and (w,), their sum is the level of a code.
        zero, other: (2, levels) price of zero, and of any other point less `slope` times its square.
        limits: (levels,) of the square.
        ends: (M, w) where a tile has its last column.
        costs: (groups, S, ROWS) of the S survivors.
        undecided: (groups, S, K, ROWS) errors in the latest K columns, column c at `c % K`.
        start: Of the block's columns.
        known: From where on all is decided.
        first: The first column that is to be decided now.
        decided: (M, known - first) errors.
    """
    num_rows, width = moved.shape
    num_states, depth = sources.shape[0], undecided.shape[2]
    fresh = np.zeros((num_states, depth, ROWS), np.float32)
    lost = np.zeros((num_states, depth, ROWS), np.float32)
    cost = np.zeros((num_states, ROWS), np.float32)
    price = np.zeros((2, num_states, ROWS), np.float32)
    point = np.zeros((2, num_states, ROWS), np.float32)
    behind = np.zeros((inner.shape[1], ROWS), np.float32)
    column, given = np.zeros((width, ROWS), np.float32), np.zeros((width, ROWS), np.float32)
    shared, best, chosen = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32)
    free, paid = np.zeros((2, ROWS), np.float32), np.zeros((2, ROWS), np.float32)
    rise, most = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32)
    mask = np.zeros(ROWS, np.int32)
    lost_bits, fresh_bits = lost.view(np.int32), fresh.view(np.int32)
    ratio = np.zeros(depth, np.float32)
    never, none, one, two, four = np.float32(NEVER), np.float32(0), np.float32(1), np.float32(2), np.float32(4)
    quarter, limit, bound = np.float32(0.25), np.int64(zero.shape[1] - 1), np.float32(1.5)
    for group in range(costs.shape[0]):
        top = group * ROWS
        count = min(ROWS, num_rows - top)
        for r in range(count):
            for j in range(width):
                column[j, r], given[j, r] = target[top + r, j], moved[top + r, j]
        cost[:] = costs[group]
        lost[:] = undecided[group]
        behind[:] = none
        for j in range(width - 1, -1, -1):
            at = (start + j) % depth
            for r in range(ROWS):
                best[r], chosen[r] = cost[0, r], lost[0, at, r]
            for s in range(1, num_states):
                for r in range(ROWS):
                    chosen[r] = lost[s, at, r] if cost[s, r] < best[r] else chosen[r]
                    best[r] = min(best[r], cost[s, r])
            if start + j + depth < known:  # the column whose place the new one takes
                for r in range(count):
                    decided[top + r, start + j + depth - first] = chosen[r]
                for s in range(num_states):
                    for r in range(ROWS):
                        cost[s, r] = cost[s, r] if lost[s, at, r] == chosen[r] else never
                for r in range(ROWS):
                    behind[j + depth, r] = chosen[r]
            for r in range(count):
                if ends[top + r, j]:  # the best survivor goes on alone, in state 0
                    s = 0
                    for each in range(1, num_states):
                        s = each if cost[each, r] < cost[s, r] else s
                    cost[0, r] = cost[s, r]
                    for k in range(depth):
                        lost[0, k, r] = lost[s, k, r]
                    for each in range(1, num_states):
                        cost[each, r] = never
                level = min(max(row_levels[top + r] + column_levels[j], 0), limit)
                free[0, r], free[1, r] = zero[0, level], zero[1, level]
                paid[0, r], paid[1, r] = other[0, level], other[1, level]
                rise[r], most[r] = slope[level], limits[level]
            for r in range(ROWS):
                shared[r] = given[j, r]
            for k in range(j + depth, known - start):
                for r in range(ROWS):
                    shared[r] += behind[k, r] * inner[j, k]
            for k in range(1, depth):
                ratio[(start + j + k) % depth] = inner[j, j + k]
            ratio[at] = none
            weight = weights[j]
            for s in range(num_states):
                u, even, odd = best, point[0, s], point[1, s]
                for r in range(ROWS):
                    u[r] = shared[r]
                for k in range(depth):
                    for r in range(ROWS):
                        u[r] += lost[s, k, r] * ratio[k]
                if s & 1 == 0:  # even codes are multiples of 4, odd ones lie 2 beside
                    for r in range(ROWS):
                        even[r] = four * np.rint(u[r] * quarter)
                        odd[r] = four * np.rint((u[r] - two) * quarter) + two
                else:  # 0, 3, 7, ... and 1, 5, ..., with both signs
                    for r in range(ROWS):
                        size = abs(u[r])
                        sign = -one if u[r] < 0 else one
                        odd[r] = sign * (four * max(none, np.rint((size - one) * quarter)) + one)
                        outer = sign * (four * max(one, np.rint((size + one) * quarter)) - one)
                        even[r] = outer if size >= bound else none
                q = s & 1
                for r in range(ROWS):
                    bits = free[q, r] if even[r] == 0 else paid[q, r] + rise[r] * min(even[r] * even[r], most[r])
                    price[0, s, r] = cost[s, r] + (u[r] - even[r]) * (u[r] - even[r]) * weight + bits
                for r in range(ROWS):
                    bits = paid[q, r] + rise[r] * min(odd[r] * odd[r], most[r])
                    price[1, s, r] = cost[s, r] + (u[r] - odd[r]) * (u[r] - odd[r]) * weight + bits
            for n in range(num_states):
                s, p, t, o = sources[n, 0], parities[n, 0], sources[n, 1], parities[n, 1]
                for r in range(ROWS):
                    mask[r] = -np.int32(price[o, t, r] < price[p, s, r])
                    cost[n, r] = min(price[p, s, r], price[o, t, r])
                for k in range(depth):
                    for r in range(ROWS):
                        fresh_bits[n, k, r] = lost_bits[s, k, r] ^ ((lost_bits[s, k, r] ^ lost_bits[t, k, r]) & mask[r])
                for r in range(ROWS):
                    fresh[n, at, r] = column[j, r] - (point[o, t, r] if mask[r] else point[p, s, r])
            lost, fresh, lost_bits, fresh_bits = fresh, lost, fresh_bits, lost_bits
        for r in range(count):
            s = 0
            for each in range(1, num_states):
                s = each if cost[each, r] < cost[s, r] else s
            if start == 0:
                for c in range(min(depth, known)):
                    decided[top + r, c] = lost[s, c, r]
            least = cost[s, r]
            for each in range(num_states):
                cost[each, r] = min(cost[each, r] - least, never)
        costs[group] = cost
        undecided[group] = lost
