"""Asymmetric numeral system for the residual: the statistics of a code depend on the codes before it in its row.

The trellis (see `trellis`) decides from the parities of a row's earlier codes which of two
quantisers the next one uses, and with it the probabilities. A library that codes arrays at a time
cannot know that, so this is a coder of our own, compiled by numba: 64-bit state, 32-bit words,
probabilities in units of 2^-22.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

PRECISION = 22
WORD = 32
BIN_BITS = 8
BINS = 1 << BIN_BITS  # of equal width, in which the search for a symbol begins
MOST = 2**30  # of a code that is written out: twice it is still a 32-bit number
LANES = 8  # tiles that are decoded in turns
SYMBOL_CENTRE = 1 << 17  # added to a point in an entry
# Numba makes floating-point numbers of mixed signed and unsigned ones, and indices without a sign are faster.
ONE, SLOTS, FULL = np.uint64(1), np.uint64((1 << PRECISION) - 1), np.uint64(1 << WORD)
SHIFT_SLOT, SHIFT_SYMBOL, SHIFT_BIN = np.uint64(PRECISION), np.uint64(2 * PRECISION), np.uint64(PRECISION - BIN_BITS)
SHIFT_LEVEL, SHIFT_QUANTISER, SHIFT_WORD = np.uint64(BIN_BITS), np.uint64(BIN_BITS + 6), np.uint64(WORD)


@numba.njit(nogil=True, cache=True)
def rans_encode(codes, quantisers, levels, starts, largest, cumulative):  # pragma: no cover
    """Words and large codes of a tile.

    Arrays:
        codes, quantisers, levels: (P, Q).
        starts: (2, levels) where the cumulative frequencies of a quantiser and level begin.
        largest: (levels,) the largest magnitude with a symbol of its own.
        cumulative: All of them, one list after another, each from 0 to 2^22.

    Returns:
        Words (uint32) in the order in which they were written, and large codes in the order of decoding.
    """
    num_rows, num_columns = codes.shape
    words = np.empty(codes.size + 2, np.uint32)
    escapes = np.empty(codes.size, np.int32)
    num_words, num_escapes = 0, 0
    state = np.uint64(0)
    for i in range(num_rows - 1, -1, -1):
        for j in range(num_columns):
            level = levels[i, j]
            code, most = codes[i, j], largest[level]
            place = starts[quantisers[i, j], level]
            if abs(code) > most:
                escapes[num_escapes] = code
                num_escapes += 1
                place += 2 * most + 1
            else:
                place += code + most
            low = np.uint64(cumulative[place])
            frequency = np.uint64(cumulative[place + 1]) - low
            if state >= frequency << np.uint64(2 * WORD - PRECISION):
                words[num_words] = np.uint32(state & np.uint64(0xFFFFFFFF))
                num_words += 1
                state >>= np.uint64(WORD)
            state = ((state // frequency) << np.uint64(PRECISION)) + state % frequency + low
    while state:
        words[num_words] = np.uint32(state & np.uint64(0xFFFFFFFF))
        num_words += 1
        state >>= np.uint64(WORD)
    return words[:num_words].copy(), escapes[:num_escapes][::-1].copy()


@numba.njit(nogil=True, cache=True)
def rans_decode(words, escapes, levels, following, starts, largest, cumulative, guesses, codes, quantisers):  # pragma: no cover
    """Fill codes and quantisers (P, Q) of a tile, rows from the last column to the first.

    No stream makes it read or write outside of these arrays: symbols are searched between the ends
    of a list that covers all slots, words and large codes are counted.

    Arrays:
        following: (S, 2) the next state by the parity of a code; state s uses quantiser `s & 1`.
        guesses: (2, levels, bins + 1) where in `cumulative` the first slot of each bin lies.

    Returns:
        0, or 1 where large codes are lacking, 2 where words or large codes are left over, 3 where one is too large.
    """
    num_rows, num_columns = levels.shape
    left, used = len(words), 0
    mask = np.uint64((1 << PRECISION) - 1)
    value = np.uint64(0)
    for _ in range(2):
        if left:
            left -= 1
            value = (value << np.uint64(WORD)) | np.uint64(words[left])
    for i in range(num_rows):
        state = 0
        for j in range(num_columns - 1, -1, -1):
            level = levels[i, j]
            most = largest[level]
            begin = starts[state & 1, level]
            slot = np.int64(value & mask)
            part = slot >> (PRECISION - BIN_BITS)
            low, high = np.int64(guesses[state & 1, level, part]), np.int64(guesses[state & 1, level, part + 1]) + 1
            while high - low > 1:
                middle = (low + high) >> 1
                if cumulative[middle] <= slot:
                    low = middle
                else:
                    high = middle
            frequency = np.uint64(cumulative[low + 1] - cumulative[low])
            value = frequency * (value >> np.uint64(PRECISION)) + np.uint64(slot - cumulative[low])
            if value < np.uint64(1 << WORD) and left:
                left -= 1
                value = (value << np.uint64(WORD)) | np.uint64(words[left])
            code = low - begin - most
            if code > most:
                if used == len(escapes):
                    return 1
                code = np.int64(escapes[used])
                used += 1
                if abs(code) > MOST:
                    return 3
            codes[i, j] = code
            quantisers[i, j] = state & 1
            state = following[state, code & 1]
    return 2 if value or left or used < len(escapes) else 0


@numba.njit(nogil=True, cache=True)
def rans_decode_tiles(stream, lengths, counts, corners, row_levels, column_levels, following, entries, starts, largest,
                      cumulative, guesses, points):  # fmt: skip  # pragma: no cover
    """Fill the points of several tiles, see `entropy.decode_tiles`.

    A symbol waits for the one before it in its tile, so `LANES` tiles are decoded in turns, a symbol
    of each; the processor then works on one while others wait. What follows one symbol of a lane is
    the same as in `rans_decode`, but that nearly every symbol comes from one look at `entries`.

    Arrays:
        entries: (2 x levels x bins,) the symbol of the first slot of a bin, see `entropy.packed_entries`.

    Returns:
        What `rans_decode` returns of a tile that fails, or 0.
    """
    num_rows, width, last = points.shape[0], points.shape[1], np.int64(starts.shape[1] - 1)
    levels = np.empty((num_rows, width), np.uint8)
    for i in range(num_rows):
        for j in range(width):
            levels[i, j] = min(max(row_levels[i] + column_levels[j], 0), last)
    flat_points, flat_levels = points.reshape(-1), levels.reshape(-1)
    trellis = len(following) > 2
    value, state, at = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    first, left = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)  # of the words of its tile, and those that are left
    used, stop = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)  # large codes of its tile
    tile, row, column = np.full(LANES, -1), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    opened, place, active = 0, 0, LANES
    while True:
        steps, k = width, 0
        while k < active:  # a new row for lanes at the end of one, a new tile for lanes at the end of one
            t = tile[k]
            if t >= 0 and column[k] < corners[t, 2]:
                row[k] += 1
                column[k], state[k] = corners[t, 3] - 1, 0
            if t < 0 or row[k] == corners[t, 1]:
                if t >= 0 and (value[k] or left[k] != first[k] or used[k] != stop[k]):
                    return 2
                if opened == len(corners):  # none is left: the last lane takes this one's place
                    active -= 1
                    value[k], state[k], first[k], left[k] = value[active], state[active], first[active], left[active]
                    used[k], stop[k], tile[k] = used[active], stop[active], tile[active]
                    row[k], column[k] = row[active], column[active]
                    continue
                t = opened
                opened += 1
                tile[k], row[k], column[k], state[k] = t, corners[t, 0], corners[t, 3] - 1, 0
                first[k], used[k] = place, place + lengths[t]
                left[k], stop[k] = used[k], used[k] + counts[t]
                place = stop[k]
                value[k] = 0
                for _ in range(2):
                    if left[k] > first[k]:
                        left[k] -= ONE
                        value[k] = (value[k] << SHIFT_WORD) | np.uint64(stream[left[k]])
            at[k] = row[k] * width + column[k]
            steps = min(steps, column[k] - corners[t, 2] + 1)
            k += 1
        if active == 0:
            return 0
        for n in range(np.uint64(steps)):
            for k in range(active):
                v, quantiser, p = value[k], state[k] & ONE, at[k] - n
                slot = v & SLOTS
                level = np.uint64(flat_levels[p])
                entry = entries[(quantiser << SHIFT_QUANTISER) + (level << SHIFT_LEVEL) + (slot >> SHIFT_BIN)]
                rest, frequency = slot - (entry & SLOTS), (entry >> SHIFT_SLOT) & SLOTS
                symbol = np.int64(entry >> SHIFT_SYMBOL)
                if rest >= frequency:  # another symbol of this bin
                    part = slot >> SHIFT_BIN
                    low, high = np.int64(guesses[quantiser, level, part]), np.int64(guesses[quantiser, level, part + ONE]) + 1
                    while high - low > 1:
                        middle = (low + high) >> 1
                        if cumulative[middle] <= np.int64(slot):
                            low = middle
                        else:
                            high = middle
                    rest, frequency = slot - np.uint64(cumulative[low]), np.uint64(cumulative[low + 1] - cumulative[low])
                    code = low - starts[quantiser, level] - largest[level]
                    if code > largest[level]:
                        if used[k] == stop[k]:
                            return 1
                        code = np.int64(np.int32(stream[used[k]]))
                        used[k] += 1
                        if abs(code) > MOST:
                            return 3
                    sign = 1 if code > 0 else -1 if code < 0 else 0
                    point = 2 * code - np.int64(quantiser) * sign if trellis else code
                    symbol = ((point + SYMBOL_CENTRE) << 1) | (code & 1)
                v = frequency * (v >> SHIFT_SLOT) + rest
                if v < FULL and left[k] > first[k]:
                    left[k] -= ONE
                    v = (v << SHIFT_WORD) | np.uint64(stream[left[k]])
                value[k] = v
                flat_points[p] = (symbol >> 1) - SYMBOL_CENTRE
                state[k] = following[(state[k] << ONE) + np.uint64(symbol & 1)]
        for k in range(active):
            column[k] -= steps


def frequencies(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers of at least 1 whose sum is 2^22, as near to the probabilities as their sums from the left are."""
    share = (1 << PRECISION) - len(probabilities)
    sums = np.rint(np.concatenate([[0.0], probabilities.cumsum()]) / probabilities.sum() * share).astype(np.int64)
    return np.diff(sums) + 1
