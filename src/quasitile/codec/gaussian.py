"""Streams of factors, decoded many tiles at a time.

Factors are coded by the `constriction` library, a component at a time with `QuantizedGaussian`. It
computes the distribution for every number anew; here the cumulative frequencies of each spread are
taken from it once, and tiles are decoded in turns, as in `rans`.
"""

from __future__ import annotations

from functools import cache

import constriction
import numba
import numpy as np
from numpy.typing import NDArray

from quasitile.codec.factors import MAX_CODE
from quasitile.codec.rans import FULL, LANES, ONE, SHIFT_WORD

PRECISION, BIN_BITS = 24, 10  # of constriction's models; of the bins in which the search begins
SPREADS = 8.0  # on both sides of zero, within which symbols are tabulated
MOST = 4096  # largest magnitude that is
SLOTS, SHIFT_SLOT, SHIFT_SYMBOL = np.uint64((1 << PRECISION) - 1), np.uint64(PRECISION), np.uint64(2 * PRECISION)
SHIFT_BIN, LOW_SYMBOL = np.uint64(PRECISION - BIN_BITS), 1 << 15


@cache
def table(spread: float) -> tuple[int, NDArray[np.int64], NDArray[np.uint64]]:
    """The distribution of a spread, read off the library's coder.

    Returns:
        The largest symbol m that is tabulated; where the slots of the symbols -m, ..., m, m + 1 begin;
        and for each bin, in one number, what a decoder needs of the symbol of its first slot: from the
        lowest bit, 24 bits where its slots begin, 24 bits how many they are (0 outside of the table), and
        the symbol plus `LOW_SYMBOL`.
    """
    most = min(MOST, MAX_CODE - 1, int(np.ceil(SPREADS * spread)) + 1)
    model = constriction.stream.model.QuantizedGaussian(-MAX_CODE, MAX_CODE, 0.0, spread)
    coder = constriction.stream.stack.AnsCoder()
    begins = np.empty(2 * most + 2, np.int64)
    for place in range(len(begins)):
        coder.clear()
        coder.encode_reverse(place - most, model)
        begins[place] = coder.pos()[1]  # an empty coder becomes the place where the symbol's slots begin
    place = np.searchsorted(begins, np.arange(1 << BIN_BITS) << (PRECISION - BIN_BITS), side="right") - 1
    inside = (place >= 0) & (place < 2 * most + 1)
    place = np.where(inside, place, 0)
    slots = np.where(inside, begins[place + 1] - begins[place], 0).astype(np.uint64)
    symbols = (place - most + LOW_SYMBOL).astype(np.uint64)
    return most, begins, symbols << SHIFT_SYMBOL | slots << SHIFT_SLOT | begins[place].astype(np.uint64)


def decode_components(
    stream: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    shapes: NDArray[np.int64],
    ranks: NDArray[np.int64],
    spreads: NDArray,
) -> NDArray[np.float32] | None:
    """The symbols of several tiles, one tile after another, each in the order of `block.symbols`.

    Args:
        stream: The words of the tiles.
        lengths: (T,) how many each has.
        shapes: (T, 2) rows and columns.
        ranks: (T,).
        spreads: (2, K) of the left and right components of all tiles, float64.

    Returns:
        Nothing where a stream is damaged or has symbols far out, which the library must look at.
    """
    if not spreads.size:
        return np.empty(0, np.float32)
    kinds, indices = np.unique(spreads, return_inverse=True)
    tables = [table(float(spread)) for spread in kinds]
    most = np.array([each[0] for each in tables], np.int64)
    begins = np.concatenate([each[1] for each in tables])
    starts = np.concatenate([[0], np.cumsum([len(each[1]) for each in tables])]).astype(np.int64)
    entries = np.concatenate([each[2] for each in tables])
    symbols = np.empty(int((shapes.sum(1) * ranks).sum()), np.float32)
    indices = np.ascontiguousarray(indices.reshape(spreads.shape), np.int64)
    whole = _decode(stream, lengths, np.ascontiguousarray(shapes), ranks, indices, most, starts, begins, entries, symbols)
    return symbols if whole else None


@numba.njit(nogil=True, cache=True)
def _decode(stream, lengths, shapes, ranks, kinds, most, starts, begins, entries, symbols):  # pragma: no cover
    """Fill the symbols; whether all streams end where they should, with no symbol that is not in the tables."""
    value, first, left = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    kind, at = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    tile, component, origin = np.full(LANES, -1), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    rest_of_run = np.zeros(LANES, np.int64)  # symbols of its component that are left
    opened, place, active, output, components = 0, 0, LANES, 0, 0
    while True:
        steps, k = len(symbols), 0
        while k < active:  # the next component for lanes at the end of one, a new tile for lanes at the end of one
            t = tile[k]
            if t >= 0 and rest_of_run[k] == 0:
                component[k] += 1
            if t < 0 or component[k] == 2 * ranks[t]:
                if t >= 0 and (value[k] or left[k] != first[k]):
                    return False
                while opened < len(ranks) and ranks[opened] == 0:
                    opened += 1
                if opened == len(ranks):  # none is left: the last lane takes this one's place
                    active -= 1
                    value[k], first[k], left[k], at[k] = value[active], first[active], left[active], at[active]
                    tile[k], component[k], origin[k] = tile[active], component[active], origin[active]
                    kind[k], rest_of_run[k] = kind[active], rest_of_run[active]
                    continue
                t = opened
                opened += 1
                tile[k], component[k], origin[k], rest_of_run[k], at[k] = t, 0, components, 0, output
                components += ranks[t]
                output += ranks[t] * (shapes[t, 0] + shapes[t, 1])
                first[k], left[k] = place, place + lengths[t]
                place += lengths[t]
                value[k] = 0
                for _ in range(2):
                    if left[k] > first[k]:
                        left[k] -= ONE
                        value[k] = (value[k] << SHIFT_WORD) | np.uint64(stream[left[k]])
            if rest_of_run[k] == 0:
                side = 1 if component[k] >= ranks[t] else 0
                rest_of_run[k] = shapes[t, side]
                kind[k] = kinds[side, origin[k] + component[k] - side * ranks[t]]
            steps = min(steps, rest_of_run[k])
            k += 1
        if active == 0:
            return True
        for n in range(steps):
            for k in range(active):
                v = value[k]
                slot = v & SLOTS
                entry = entries[(np.uint64(kind[k]) << np.uint64(BIN_BITS)) + (slot >> SHIFT_BIN)]
                rest, frequency = slot - (entry & SLOTS), (entry >> SHIFT_SLOT) & SLOTS
                symbol = np.int64(entry >> SHIFT_SYMBOL) - LOW_SYMBOL
                if rest >= frequency:  # another symbol of this bin, or one that is not in the table
                    begin, wanted = starts[kind[k]], np.int64(slot)
                    if wanted < begins[begin] or wanted >= begins[starts[kind[k] + 1] - 1]:
                        return False
                    low = begin + most[kind[k]] + symbol
                    while begins[low + 1] <= wanted:
                        low += 1
                    rest, frequency = slot - np.uint64(begins[low]), np.uint64(begins[low + 1] - begins[low])
                    symbol = low - begin - most[kind[k]]
                v = frequency * (v >> SHIFT_SLOT) + rest
                if v < FULL and left[k] > first[k]:
                    left[k] -= ONE
                    v = (v << SHIFT_WORD) | np.uint64(stream[left[k]])
                value[k] = v
                symbols[at[k] + n] = symbol
        for k in range(active):
            at[k] += steps
            rest_of_run[k] -= steps
