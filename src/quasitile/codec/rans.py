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
def rans_decode_tiles(stream, lengths, counts, corners, row_levels, column_levels, following, starts, largest, cumulative,
                      guesses, points):  # fmt: skip  # pragma: no cover
    """Fill the points of several tiles, see `entropy.decode_tiles`; what `rans_decode` returns of the first that fails."""
    place, last = 0, np.int64(starts.shape[1] - 1)
    trellis = len(following) > 1
    for t in range(len(corners)):
        top, bottom, left, right = corners[t, 0], corners[t, 1], corners[t, 2], corners[t, 3]
        levels = np.empty((bottom - top, right - left), np.uint8)
        for i in range(bottom - top):
            for j in range(right - left):
                levels[i, j] = min(max(row_levels[top + i] + column_levels[left + j], 0), last)
        codes, quantisers = np.empty(levels.shape, np.int32), np.empty(levels.shape, np.uint8)
        words = stream[place : place + lengths[t]]
        escapes = stream[place + lengths[t] : place + lengths[t] + counts[t]].view(np.int32)
        place += lengths[t] + counts[t]
        status = rans_decode(words, escapes, levels, following, starts, largest, cumulative, guesses, codes, quantisers)
        if status:
            return status
        for i in range(bottom - top):
            for j in range(right - left):
                code = codes[i, j]
                if trellis:
                    code = 2 * code - quantisers[i, j] * ((code > 0) - (code < 0))
                points[top + i, left + j] = code
    return 0


def frequencies(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers of at least 1 whose sum is 2^22, as near to the probabilities as their sums from the left are."""
    share = (1 << PRECISION) - len(probabilities)
    sums = np.rint(np.concatenate([[0.0], probabilities.cumsum()]) / probabilities.sum() * share).astype(np.int64)
    return np.diff(sums) + 1
