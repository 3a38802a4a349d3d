"""Where the tiles lie (paper 3.1.2): aperiodic layouts and the controls they are compared with.

A tiling is a function `(M, N, short, seed) -> Tiling`. `short` is the shorter of two widths in
indices; the longer one is `short` times the golden ratio. Both are multiples of 16 where `short`
is, so that kernels stay aligned. The outermost tiles are clipped to the matrix.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import accumulate, pairwise

from quasitile.codec.block import Tile, Tiling

GOLDEN = (1 + math.sqrt(5)) / 2
ALIGNMENT = 16
PENROSE_ANGLE = math.radians(72)  # between two families of Ammann bars


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
    "grid": grid,
    "periodic": periodic,
    "shuffled": shuffled,
    "whole": whole,
}
