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
def rans_decode(words, escapes, levels, following, starts, largest, cumulative, codes, quantisers):  # pragma: no cover
    """Fill codes and quantisers (P, Q) of a tile, rows from the last column to the first.

    Arrays:
        following: (S, 2) the next state by the parity of a code; state s uses quantiser `s & 1`.

    Returns:
        0, or 1 where large codes are lacking, or 2 where words or large codes are left over.
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
            low, high = begin, begin + 2 * most + 2
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
            codes[i, j] = code
            quantisers[i, j] = state & 1
            state = following[state, code & 1]
    return 2 if value or left or used < len(escapes) else 0


def frequencies(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers of at least 1 whose sum is 2^22, as near to the probabilities as their sums from the left are."""
    share = (1 << PRECISION) - len(probabilities)
    sums = np.rint(np.concatenate([[0.0], probabilities.cumsum()]) / probabilities.sum() * share).astype(np.int64)
    return np.diff(sums) + 1
