"""Symbol statistics of residual codes, and the streams of the tiles.

The spread of a code is the product of its row's and its column's, in quarter octaves (its *level*);
the distribution at a level is a blend of a normal and a Laplace distribution of that spread, cut
into the cells of its quantiser (see `machine`). So the statistics of a whole matrix cost M + N bytes
and a shape, and every tile is a stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

from quasitile.codec.machine import machine, points_of
from quasitile.codec.rans import BINS, PRECISION, SYMBOL_CENTRE, frequencies, rans_decode, rans_decode_tiles, rans_encode

LEVEL_OCTAVE, LEVEL_CENTRE, NUM_LEVELS = 4, 16, 64  # spread 2^((level - 16) / 4)
NUM_SHAPES = 5  # a shape of n is n / 4 Laplace and the rest normal
COLUMN_CENTRE = 64
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
        num_states: Of the trellis; 1 for none.
    """

    row_levels: NDArray[np.uint8]
    column_levels: NDArray[np.uint8]
    shape: int
    num_states: int = 1

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
def probabilities(level: int, shape: int, quantiser: int = 0) -> NDArray[np.float64]:
    """Probability of each symbol: codes from `-largest_code` to `largest_code`, then "larger".

    In units of the step, the cell of code k ends half way to the next one for quantiser 0, at k for
    quantiser 1 (whose point k lies half a step nearer to zero), and that of its zero at 1/4.
    """
    largest, spread = largest_code(level), float(spread_of(level))
    edges = np.arange(0, largest + 2) - 0.5 * (1 + quantiser)
    edges[1 : 1 + quantiser] = 0.25
    normal = torch.special.ndtr(torch.from_numpy(edges / spread)).numpy()
    laplace = 1 - 0.5 * np.exp(-np.sqrt(2) * np.abs(edges) / spread)
    blend = shape / (NUM_SHAPES - 1)
    half = np.diff((1 - blend) * normal + blend * laplace)
    half[0] = 2 * ((1 - blend) * normal[1] + blend * laplace[1]) - 1
    units = frequencies(np.concatenate([half[:0:-1], half, [0.0]]))
    return units / (1 << PRECISION)


@cache
def bit_table(shape: int) -> NDArray[np.float64]:
    """Bits of a code's magnitude (2 quantisers, levels, magnitudes); magnitudes beyond the symbols cost 32 more."""
    width = largest_code(NUM_LEVELS - 1) + 2
    table = np.empty((2, NUM_LEVELS, width))
    for quantiser, level in np.ndindex(2, NUM_LEVELS):
        bits, largest = -np.log2(probabilities(level, shape, quantiser)), largest_code(level)
        table[quantiser, level] = bits[-1] + 32
        table[quantiser, level, : largest + 1] = bits[largest:-1]
    return table


@cache
def cumulative_table(shape: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Where the cumulative frequencies of (2 quantisers, levels) begin, the largest codes of levels, and all frequencies."""
    starts, lists, place = np.zeros((2, NUM_LEVELS), np.int64), [], 0
    for quantiser, level in np.ndindex(2, NUM_LEVELS):
        units = np.rint(probabilities(level, shape, quantiser) * (1 << PRECISION)).astype(np.int64)
        starts[quantiser, level] = place
        lists.append(np.concatenate([[0], units.cumsum()]))
        place += len(lists[-1])
    largest = np.array([largest_code(level) for level in range(NUM_LEVELS)], np.int64)
    return starts, largest, np.concatenate(lists).astype(np.int32)


@cache
def first_guesses(shape: int) -> NDArray[np.int32]:
    """Places in `cumulative_table` of the first slot of each bin (2 quantisers, levels, bins + 1): where a search begins."""
    starts, largest, cumulative = cumulative_table(shape)
    guesses = np.empty((2, NUM_LEVELS, BINS + 1), np.int32)
    slots = np.arange(BINS + 1) * ((1 << PRECISION) // BINS)
    for quantiser, level in np.ndindex(2, NUM_LEVELS):
        begin, count = starts[quantiser, level], 2 * largest[level] + 2
        inner = cumulative[begin : begin + count]
        guesses[quantiser, level] = begin + np.searchsorted(inner, slots, side="right") - 1
    return guesses


@cache
def packed_entries(shape: int, trellis: bool) -> NDArray[np.uint64]:
    """The symbol of the first slot of each bin (2 quantisers x levels x bins): all that a decoder needs of it in one number.

    From the lowest bit: 22 bits where its slots begin, 22 bits how many they are, the parity of its code, and
    its point plus `SYMBOL_CENTRE`.
    """
    starts, largest, cumulative = cumulative_table(shape)
    place = first_guesses(shape)[:, :, :BINS].astype(np.int64)
    code = place - (starts + largest)[:, :, None]
    point = 2 * code - np.array([0, 1])[:, None, None] * np.sign(code) if trellis else code
    symbol = ((point + SYMBOL_CENTRE) << 1 | code & 1).astype(np.uint64)
    begin = cumulative[place].astype(np.uint64)
    slots = cumulative[place + 1].astype(np.uint64) - begin
    return (symbol << np.uint64(2 * PRECISION) | slots << np.uint64(PRECISION) | begin).ravel()


def fit(points: NDArray[np.int64], num_states: int = 1, quantisers: NDArray | None = None, most: int = 1 << 13) -> Statistics:
    """Statistics that give codes few bits: moments of rows and columns, then the best offset and shape.

    Args:
        points: (M, N) whole numbers: codes, or points of the lattice of half steps.
        num_states: Of the trellis.
        quantisers: (M, N), see `codes_of`; nothing where there is no trellis.
        most: About so many codes decide the offset and the shape.
    """
    sizes = np.abs(points if num_states == 1 else points / 2)
    power = np.square(np.minimum(sizes, clip_at(sizes.mean())))
    stride = max(1, points.size // most)
    place = np.arange(0, points.size, stride | 1)  # an odd stride meets all columns
    row, column = np.divmod(place, points.shape[1])
    quantiser = 0 if quantisers is None else quantisers[row, column]
    return chosen(power.mean(1), power.mean(0), row, column, sizes[row, column], quantiser, num_states)


def clip_at(mean_size: float) -> float:
    """The largest magnitude that counts in full, so that no single code spoils its row and column."""
    return 1 + OUTLIER * mean_size


def chosen(
    row_power: NDArray,
    column_power: NDArray,
    row: NDArray,
    column: NDArray,
    sizes: NDArray,
    quantiser: NDArray | int,
    num_states: int,
) -> Statistics:
    """Statistics from the mean squares of rows (M,) and columns (N,); a sample of codes decides offset and shape.

    Args:
        row_power: Of every row.
        column_power: Of every column.
        row: Of each code of the sample.
        column: Likewise.
        sizes: Magnitudes of the sample, in steps.
        quantiser: Of each code of the sample.
        num_states: Of the trellis.
    """
    rows, columns, mean = row_power + PRIOR, column_power + PRIOR, row_power.mean() + PRIOR
    # A rounded normal variable has a twelfth more power where the step is small against its spread.
    row_levels = LEVEL_OCTAVE / 2 * np.log2(np.maximum(rows - rows.clip(0, 1) / 12, PRIOR / 2)) + LEVEL_CENTRE
    column_levels = LEVEL_OCTAVE / 2 * np.log2(columns / mean) + COLUMN_CENTRE
    level = np.rint(row_levels)[row] + np.rint(column_levels)[column] - COLUMN_CENTRE
    magnitude = np.minimum(np.ceil(sizes).astype(int), bit_table(0).shape[2] - 1)
    offsets = range(-4, 3)
    cost = {
        (shape, offset): bit_table(shape)[quantiser, (level + offset).clip(0, NUM_LEVELS - 1).astype(int), magnitude].sum()
        for shape in range(NUM_SHAPES)
        for offset in offsets
    }
    shape, offset = min(cost, key=lambda choice: cost[choice])
    return Statistics(
        (np.rint(row_levels) + offset).clip(0, 255).astype(np.uint8),
        np.rint(column_levels).clip(0, 255).astype(np.uint8),
        shape,
        num_states,
    )


def code_bits(codes: NDArray[np.integer], quantisers: NDArray[np.uint8], statistics: Statistics) -> float:
    """Bits of all codes (M, N) under the statistics, escapes included."""
    levels = statistics.levels(slice(None), slice(None))
    table = bit_table(statistics.shape)
    return float(table[quantisers, levels, np.minimum(np.abs(codes), table.shape[2] - 1)].sum())


def encode_tile(
    codes: NDArray[np.int32], quantisers: NDArray[np.uint8], levels: NDArray[np.uint8], shape: int
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """The codes of a tile as 32-bit words, and those too large for a symbol in the order of decoding.

    Args:
        codes: (P, Q) whole numbers.
        quantisers: (P, Q), see `codes_of`.
        levels: (P, Q).
        shape: See `Statistics`.
    """
    parts = (np.ascontiguousarray(codes, np.int32), np.ascontiguousarray(quantisers, np.uint8), np.ascontiguousarray(levels))
    return rans_encode(*parts, *cumulative_table(shape))


def decode_tile(
    words: NDArray[np.uint32], escapes: NDArray[np.int32], levels: NDArray[np.uint8], shape: int, num_states: int = 1
) -> NDArray[np.int32]:
    """The points (P, Q) whose codes `encode_tile` wrote.

    Raises:
        ValueError: Words or large codes are left over or lacking.
    """
    codes, quantisers = np.empty(levels.shape, np.int32), np.empty(levels.shape, np.uint8)
    words, escapes, levels = np.ascontiguousarray(words), np.ascontiguousarray(escapes), np.ascontiguousarray(levels)
    following = machine(num_states).following
    status = rans_decode(words, escapes, levels, following, *cumulative_table(shape), first_guesses(shape), codes, quantisers)
    _check(status)
    return points_of(codes, quantisers, num_states)


def decode_tiles(
    stream: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    counts: NDArray[np.int64],
    corners: NDArray[np.int64],
    statistics: Statistics,
) -> NDArray[np.int32]:
    """The points (M, N) of tiles that cover a matrix, or whole row bands of one.

    Args:
        stream: Tile after tile: its words, then its large codes.
        lengths: (T,) of the words.
        counts: (T,) of the large codes; all together are the stream.
        corners: (T, 4) row start, row stop, column start, column stop.
        statistics: Of these rows.

    Raises:
        ValueError: Words or large codes are left over or lacking.
    """
    shape = len(statistics.row_levels), len(statistics.column_levels)
    assert int(lengths.sum() + counts.sum()) == len(stream)
    assert int(corners[:, 1].max()) <= shape[0]
    assert int(corners[:, 3].max()) <= shape[1]
    points = np.zeros(shape, np.int32)
    levels = statistics.row_levels.astype(np.int64), statistics.column_levels.astype(np.int64) - COLUMN_CENTRE
    num_states = statistics.num_states
    following = machine(num_states).following.ravel()
    packed = packed_entries(statistics.shape, num_states > 1)
    tables = packed, *cumulative_table(statistics.shape), first_guesses(statistics.shape)
    _check(rans_decode_tiles(stream, lengths, counts, np.ascontiguousarray(corners), *levels, following, *tables, points))
    return points


def _check(status: int) -> None:
    """What a decoder returned."""
    if status == 1:
        raise ValueError("its residual names more large codes than it holds")
    if status == 2:
        raise ValueError("its residual stream does not end where it should")
    if status == 3:
        raise ValueError(f"its residual has a code beyond {MAX_ESCAPE // 2}")


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
