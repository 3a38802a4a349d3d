"""Where the tiles lie (paper 3.1.2): aperiodic layouts and the controls they are compared with.

A tiling is a function `(M, N, short, seed) -> Tiling`. `short` is the shorter of two widths in
indices; the longer one is `short` times the golden ratio. Both are multiples of 16 where `short`
is, so that kernels stay aligned. The outermost tiles are clipped to the matrix.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from quasitile.codec.block import Tile, Tiling

GOLDEN = (1 + math.sqrt(5)) / 2
ALIGNMENT = 16
PENROSE_ANGLE = math.radians(72)  # between two families of Ammann bars
SUPERTILE_LEVEL = 2  # a long supertile is as wide as L, S and L together


def long_width(short: int) -> int:
    """The longer width: `short` times the golden ratio, a multiple of 16 where `short` is one."""
    unit = ALIGNMENT if short % ALIGNMENT == 0 else 1
    return unit * round(GOLDEN * short / unit)


def fibonacci_letters(count: int, start: int = 0) -> str:
    """`count` letters of the bi-infinite Fibonacci word (L -> LS, S -> L), from index `start` on.

    Letter n is L where `floor((n + 2) / golden) - floor((n + 1) / golden)` is 1, which is the word
    that the substitution generates from L when `start` is 0.
    """
    return "".join(
        "L" if math.floor((n + 2) / GOLDEN) - math.floor((n + 1) / GOLDEN) else "S" for n in range(start, start + count)
    )


def cuts_of_widths(widths: list[int], length: int, offset: int = 0) -> list[int]:
    """Cut positions `[0, ..., length]` of consecutive widths, the first begun `offset` indices before 0."""
    edges = accumulate(widths, initial=-offset)
    return [0, *(edge for edge in edges if 0 < edge < length), length]


def fibonacci_cuts(length: int, short: int, start: int = 0, offset: int = 0) -> list[int]:
    """Cut `[0, length)` into a Fibonacci chain of two widths (paper 3.1.2).

    Args:
        length: Number of indices to cut.
        short: The shorter width.
        start: Which letter of the infinite word comes first: the phase.
        offset: How far before index 0 the first width begins.

    Raises:
        ValueError: `short` is less than 1.
    """
    if short < 1:
        raise ValueError(f"short={short} must be at least 1; raise `tiling.short`")
    letters = fibonacci_letters((length + offset) // short + 2, start)
    return cuts_of_widths([long_width(short) if letter == "L" else short for letter in letters], length, offset)


def product_tiling(row_cuts: list[int], column_cuts: list[int]) -> Tiling:
    """All rectangles between neighbouring cuts, row band after row band."""
    return banded_tiling(row_cuts, [column_cuts] * (len(row_cuts) - 1))


def banded_tiling(row_cuts: list[int], cuts_of_band: list[list[int]]) -> Tiling:
    """Row bands, each with its own column cuts."""
    tiles = tuple(
        Tile(top, bottom, left, right)
        for (top, bottom), columns in zip(pairwise(row_cuts), cuts_of_band, strict=True)
        for left, right in pairwise(columns)
    )
    return Tiling((row_cuts[-1], cuts_of_band[0][-1]), tiles)


def fibonacci(num_rows: int, num_columns: int, short: int, seed: int = 0) -> Tiling:
    """Rows and columns each cut by a Fibonacci chain; the seed shifts the phase. Four shapes."""
    return product_tiling(fibonacci_cuts(num_rows, short, seed), fibonacci_cuts(num_columns, short, seed))


def penrose(num_rows: int, num_columns: int, short: int, seed: int = 0) -> Tiling:
    """Tiles between Ammann bars of a Penrose tiling, which are spaced like a Fibonacci chain.

    One family of bars gives the row bands. Inside a band, the column cuts are where a second
    family, 72 degrees away, crosses the band's centre line; so neighbouring bands are shifted
    against each other by their distance over tan 72 degrees, and nothing repeats in either
    direction. The shift is a multiple of 16 where the bands are high enough for it.
    """
    row_cuts = fibonacci_cuts(num_rows, short, seed)
    unit = ALIGNMENT if short % ALIGNMENT == 0 and short / math.tan(PENROSE_ANGLE) >= ALIGNMENT else 1
    bands = []
    for top, bottom in pairwise(row_cuts):
        shift = unit * round((top + bottom) / 2 / math.tan(PENROSE_ANGLE) / unit)
        letter, passed = seed, 0
        while passed + (width := long_width(short) if fibonacci_letters(1, letter) == "L" else short) <= shift:
            passed += width
            letter += 1
        bands.append(fibonacci_cuts(num_columns, short, letter, shift - passed))
    return banded_tiling(row_cuts, bands)


@dataclass(frozen=True)
class Stretch:
    """A letter of a Fibonacci chain that is `level` deflations short of the finest, clipped to the matrix."""

    start: int
    stop: int
    letter: str
    level: int

    def deflated(self, short: int) -> list[Stretch]:
        """What stands in its place one level down: L -> LS, S -> L (the same indices under another name)."""
        if self.level == 0:
            return [self]
        middle = self.start + level_width("L", short, self.level - 1)
        if self.letter == "S" or middle >= self.stop:
            return [Stretch(self.start, self.stop, "L", self.level - 1)]
        return [Stretch(self.start, middle, "L", self.level - 1), Stretch(middle, self.stop, "S", self.level - 1)]

    def finest(self, short: int) -> list[Stretch]:
        """What stands in its place at level 0."""
        parts: list[Stretch] = [self]
        for _ in range(self.level):
            parts = [smaller for part in parts for smaller in part.deflated(short)]
        return parts


def level_width(letter: str, short: int, level: int) -> int:
    """The width of a letter: at level 0 that of a tile's side, above it that of the letters that it becomes."""
    widths = {"L": long_width(short), "S": short}
    for _ in range(level):
        widths = {"L": widths["L"] + widths["S"], "S": widths["L"]}
    return widths[letter]


def supertiles(length: int, short: int, start: int, level: int) -> list[Stretch]:
    """The Fibonacci chain of a level over `[0, length)`, its first letter being number `start` of the infinite word."""
    if short < 1:
        raise ValueError(f"short={short} must be at least 1; raise `tiling.short`")
    letters = fibonacci_letters(length // level_width("S", short, level) + 1, start)
    edges = accumulate((level_width(letter, short, level) for letter in letters), initial=0)
    return [
        Stretch(first, min(last, length), letter, level)
        for letter, (first, last) in zip(letters, pairwise(edges), strict=True)
        if first < length
    ]


Bands = list[tuple[Stretch, list[Stretch]]]  # rows, and the columns they are cut into


def hierarchical(
    num_rows: int,
    num_columns: int,
    short: int,
    seed: int = 0,
    cost: Callable[[Tile], float] | None = None,
    level: int = SUPERTILE_LEVEL,
) -> Tiling:
    """Supertiles of a Fibonacci chain, of which only some are deflated (L -> LS, S -> L) to smaller tiles.

    Rows are deflated a whole band at a time and columns inside each band by themselves, so that the
    tiles form row bands.

    Args:
        num_rows: M.
        num_columns: N.
        short: The shorter side of the smallest tiles.
        seed: Phase of the chain.
        cost: Of a tile; the tiling is then the one with the least sum of costs that deflation can
            reach (exact), and of equal ones the coarser. Without it, those supertiles are deflated
            that are long in both directions: about half of the area, down to the smallest tiles.
        level: How many deflations there may be.
    """
    rows, columns = supertiles(num_rows, short, seed, level), supertiles(num_columns, short, seed, level)
    bands: Bands = []
    for row in rows:
        if cost is not None:
            bands += _cheapest_bands(row, columns, short, cost)[1]
        elif row.letter == "S":
            bands.append((row, columns))
        else:
            mixed = [part for column in columns for part in (column.finest(short) if column.letter == "L" else [column])]
            bands += [(part, mixed) for part in row.finest(short)]
    row_cuts = [0, *(row.stop for row, _ in bands)]
    return banded_tiling(row_cuts, [[0, *(part.stop for part in parts)] for _, parts in bands])


def _cheapest_bands(row: Stretch, columns: list[Stretch], short: int, cost: Callable[[Tile], float]) -> tuple[float, Bands]:
    """The cheapest way to cut the rows of a stretch into bands, and its cost."""
    parts = row.deflated(short)
    if len(parts) == 1 and row.level:
        return _cheapest_bands(parts[0], columns, short, cost)
    cheapest = [_cheapest_columns(row, column, short, cost) for column in columns]
    undivided = sum(price for price, _ in cheapest), [(row, [part for _, found in cheapest for part in found])]
    if len(parts) == 1:
        return undivided
    divided = [_cheapest_bands(part, columns, short, cost) for part in parts]
    return min(undivided, (sum(price for price, _ in divided), [band for _, found in divided for band in found]), key=_price)


def _cheapest_columns(row: Stretch, column: Stretch, short: int, cost: Callable[[Tile], float]) -> tuple[float, list[Stretch]]:
    """The cheapest way to cut a stretch of columns inside a band, and its cost."""
    parts = column.deflated(short)
    if len(parts) == 1 and column.level:
        return _cheapest_columns(row, parts[0], short, cost)
    undivided = cost(Tile(row.start, row.stop, column.start, column.stop)), [column]
    if len(parts) == 1:
        return undivided
    divided = [_cheapest_columns(row, part, short, cost) for part in parts]
    return min(undivided, (sum(price for price, _ in divided), [part for _, found in divided for part in found]), key=_price)


def _price(choice: tuple[float, list]) -> float:
    return choice[0]


def grid(num_rows: int, num_columns: int, short: int, seed: int = 0) -> Tiling:
    """Equal squares, of the Fibonacci chain's mean width so that the tiles are as many."""
    unit = ALIGNMENT if short % ALIGNMENT == 0 else 1
    mean_width = (GOLDEN * long_width(short) + short) / (GOLDEN + 1)
    width = unit * round(mean_width / unit)

    def cuts(length: int) -> list[int]:
        return cuts_of_widths([width] * (length // width + 1), length)

    return product_tiling(cuts(num_rows), cuts(num_columns))


def periodic(num_rows: int, num_columns: int, short: int, seed: int = 0) -> Tiling:
    """The Fibonacci chain's two widths in strict alternation."""

    def cuts(length: int) -> list[int]:
        return cuts_of_widths([long_width(short), short] * (length // short + 1), length)

    return product_tiling(cuts(num_rows), cuts(num_columns))


def shuffled(num_rows: int, num_columns: int, short: int, seed: int = 0) -> Tiling:
    """The Fibonacci chain's widths in random order."""

    def cuts(length: int, salt: int) -> list[int]:
        edges = fibonacci_cuts(length, short)
        widths = [after - before for before, after in pairwise(edges)]
        random.Random(2 * seed + salt).shuffle(widths)
        return cuts_of_widths(widths, length)

    return product_tiling(cuts(num_rows, 0), cuts(num_columns, 1))


def whole(num_rows: int, num_columns: int, short: int, seed: int = 0) -> Tiling:
    """One tile: ordinary singular value decomposition of the matrix."""
    return product_tiling([0, num_rows], [0, num_columns])


TILINGS: dict[str, Callable[[int, int, int, int], Tiling]] = {
    "fibonacci": fibonacci,
    "penrose": penrose,
    "hierarchical": hierarchical,
    "grid": grid,
    "periodic": periodic,
    "shuffled": shuffled,
    "whole": whole,
}
