"""Symbol statistics of residual codes, and their asymmetric-numeral-system streams.

The spread of a code is the product of its row's and its column's, in quarter octaves (its *level*);
the distribution at a level is a blend of a normal and a Laplace distribution of that spread. So the
statistics of a whole matrix cost M + N bytes and a shape, and every tile is a stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

LEVEL_OCTAVE, LEVEL_CENTRE, NUM_LEVELS = 4, 16, 64  # spread 2^((level - 16) / 4)
NUM_SHAPES = 5  # a shape of n is n / 4 Laplace and the rest normal
COLUMN_CENTRE = 64
PROBABILITY_UNITS = 1 << 22
CODED_SPREADS = 7.0  # codes up to so many spreads have a symbol of their own; larger ones are written out
OUTLIER = 30.0  # times the mean magnitude
PRIOR = 0.02  # mean square that a row or column of zeros is given
MAX_ESCAPE = 2**31 - 1


@dataclass(frozen=True)
class Statistics:
    """What the decoder must know of a matrix' residual codes.

    Attributes:
        row_levels: (M,) uint8.
        column_levels: (N,) uint8, around 64.
        shape: 0 (normal) to 4 (Laplace).
    """

    row_levels: NDArray[np.uint8]
    column_levels: NDArray[np.uint8]
    shape: int

    def levels(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """The level of every code of a tile (P, Q)."""
        total = self.row_levels[rows].astype(np.int16)[:, None] + self.column_levels[columns] - COLUMN_CENTRE
        return total.clip(0, NUM_LEVELS - 1).astype(np.uint8)


def spread_of(level: NDArray | int) -> NDArray:
    """The standard deviation that a level stands for."""
    return np.exp2((np.asarray(level, dtype=np.float64) - LEVEL_CENTRE) / LEVEL_OCTAVE)


def largest_code(level: int) -> int:
    """The largest magnitude with a symbol of its own."""
    return int(np.ceil(CODED_SPREADS * spread_of(level))) + 1


@cache
def probabilities(level: int, shape: int) -> NDArray[np.float64]:
    """Probability of each symbol: codes from `-largest_code` to `largest_code`, then "larger".

    Multiples of 2^-22, so that machines whose last bit of `exp` differs agree on them.
    """
    largest, spread = largest_code(level), float(spread_of(level))
    edges = np.arange(0, largest + 2) - 0.5
    normal = torch.special.ndtr(torch.from_numpy(edges / spread)).numpy()
    laplace = 1 - 0.5 * np.exp(-np.sqrt(2) * np.abs(edges) / spread)
    laplace[0] = 1 - laplace[0]
    blend = shape / (NUM_SHAPES - 1)
    half = np.diff((1 - blend) * normal + blend * laplace)
    units = np.maximum(1, np.rint(PROBABILITY_UNITS * np.concatenate([half[:0:-1], half, [0.0]])))
    return units / units.sum()


@cache
def bit_table(shape: int) -> NDArray[np.float64]:
    """Bits of a code's magnitude at each level, (levels, magnitudes); magnitudes beyond the symbols cost 32 more."""
    width = largest_code(NUM_LEVELS - 1) + 2
    table = np.empty((NUM_LEVELS, width))
    for level in range(NUM_LEVELS):
        bits, largest = -np.log2(probabilities(level, shape)), largest_code(level)
        table[level] = bits[-1] + 32
        table[level, : largest + 1] = bits[largest:-1]
    return table


def fit(codes: NDArray[np.int64], most: int = 1 << 13) -> Statistics:
    """Statistics that give codes (M, N) few bits: moments of rows and columns, then the best offset and shape.

    Args:
        codes: Whole numbers.
        most: About so many codes decide the offset and the shape.
    """
    sizes = np.abs(codes)
    power = np.square(np.minimum(sizes, 1 + OUTLIER * sizes.mean()))  # no single code spoils its row and column
    rows, columns, mean = power.mean(1) + PRIOR, power.mean(0) + PRIOR, power.mean() + PRIOR
    # A rounded normal variable has a twelfth more power where the step is small against its spread.
    row_levels = LEVEL_OCTAVE / 2 * np.log2(np.maximum(rows - rows.clip(0, 1) / 12, PRIOR / 2)) + LEVEL_CENTRE
    column_levels = LEVEL_OCTAVE / 2 * np.log2(columns / mean) + COLUMN_CENTRE
    stride = max(1, codes.size // most)
    place = np.arange(0, codes.size, stride | 1)  # an odd stride meets all columns
    row, column = np.divmod(place, codes.shape[1])
    level = np.rint(row_levels)[row] + np.rint(column_levels)[column] - COLUMN_CENTRE
    magnitude = np.minimum(sizes[row, column], bit_table(0).shape[1] - 1)
    offsets = range(-4, 3)
    cost = {
        (shape, offset): bit_table(shape)[(level + offset).clip(0, NUM_LEVELS - 1).astype(int), magnitude].sum()
        for shape in range(NUM_SHAPES)
        for offset in offsets
    }
    shape, offset = min(cost, key=lambda choice: cost[choice])
    return Statistics(
        (np.rint(row_levels) + offset).clip(0, 255).astype(np.uint8),
        np.rint(column_levels).clip(0, 255).astype(np.uint8),
        shape,
    )


def code_bits(codes: NDArray[np.int64], statistics: Statistics) -> float:
    """Bits of all codes (M, N) under the statistics, escapes included."""
    levels = statistics.levels(slice(None), slice(None))
    table = bit_table(statistics.shape)
    return float(table[levels, np.minimum(np.abs(codes), table.shape[1] - 1)].sum())


@cache
def _model(level: int, shape: int) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(probabilities(level, shape), perfect=False)


def _runs(levels: NDArray[np.uint8]) -> tuple[NDArray[np.intp], list[tuple[int, int, int]]]:
    """Order in which the codes of a tile are coded, and (level, start, stop) of each run of equal level."""
    order = np.argsort(levels, axis=None, kind="stable")
    sizes = np.bincount(levels.ravel(), minlength=NUM_LEVELS)
    stops = sizes.cumsum()
    return order, [(level, int(stops[level] - sizes[level]), int(stops[level])) for level in np.flatnonzero(sizes).tolist()]


def encode_codes(
    codes: NDArray[np.int64], levels: NDArray[np.uint8], shape: int
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """The codes of a tile as 32-bit words, and those too large for a symbol in order of their place.

    Args:
        codes: (P, Q) whole numbers.
        levels: (P, Q).
        shape: See `Statistics`.
    """
    order, runs = _runs(levels)
    row = codes.ravel()[order]
    coder = constriction.stream.stack.AnsCoder()
    escapes = []
    for level, start, stop in reversed(runs):
        largest, part = largest_code(level), row[start:stop]
        outside = np.abs(part) > largest
        if outside.any():
            escapes.append(part[outside])
        symbols = np.where(outside, 2 * largest + 1, part + largest).astype(np.int32)
        coder.encode_reverse(symbols, _model(level, shape))
    return coder.get_compressed(), np.concatenate([np.zeros(0), *reversed(escapes)]).astype(np.int32)


def decode_codes(
    words: NDArray[np.uint32], escapes: NDArray[np.int32], levels: NDArray[np.uint8], shape: int
) -> NDArray[np.int32]:
    """The codes (P, Q) that `encode_codes` wrote.

    Raises:
        ValueError: Words or escapes are left over or lacking.
    """
    order, runs = _runs(levels)
    coder = constriction.stream.stack.AnsCoder(words)
    row = np.empty(levels.size, dtype=np.int32)
    used = 0
    for level, start, stop in runs:
        largest = largest_code(level)
        part = coder.decode(_model(level, shape), stop - start) - largest
        outside = part > largest
        count = int(outside.sum())
        if count:
            if used + count > len(escapes):
                raise ValueError("its residual names more large codes than it holds")
            part[outside] = escapes[used : used + count]
            used += count
        row[start:stop] = part
    if used != len(escapes) or not coder.is_empty():
        raise ValueError("its residual stream does not end where it should")
    codes = np.empty_like(row)
    codes[order] = row
    return codes.reshape(levels.shape)


def encode_bytes(values: NDArray[np.uint8]) -> bytes:
    """Side information of similar size (levels, scales): mean, spread, word count, and a stream of words."""
    mean = round(float(values.mean())) if len(values) else 0
    spread = max(0.3, float(values.astype(np.float64).std())) if len(values) else 0.3
    spread_code = int(np.clip(np.rint(np.log2(spread) * 8) + 32, 0, 255))
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(values.astype(np.int32), _byte_model(mean, spread_code))
    words = coder.get_compressed()
    return bytes([mean, spread_code]) + len(words).to_bytes(4, "little") + words.astype("<u4").tobytes()


def decode_bytes(mean: int, spread_code: int, words: NDArray[np.uint32], count: int) -> NDArray[np.uint8]:
    """What `encode_bytes` wrote, from its parts.

    Raises:
        ValueError: The words are not of so many values.
    """
    coder = constriction.stream.stack.AnsCoder(words)
    values = coder.decode(_byte_model(mean, spread_code), count).astype(np.uint8)
    if not coder.is_empty():
        raise ValueError("its scales do not end where they should")
    return values


def _byte_model(mean: int, spread_code: int) -> constriction.stream.model.QuantizedGaussian:
    return constriction.stream.model.QuantizedGaussian(0, 255, float(mean), float(np.exp2((spread_code - 32) / 8)))
