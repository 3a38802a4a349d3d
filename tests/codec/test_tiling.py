"""Tilings cover exactly, are what their names say, and differ where they should."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quasitile.codec.block import Tiling
from quasitile.codec.tiling import (
    GOLDEN,
    TILINGS,
    banded_tiling,
    fibonacci_cuts,
    fibonacci_letters,
    long_width,
    periodic,
    product_tiling,
)


def widths(cuts):
    return [after - before for before, after in itertools.pairwise(cuts)]


def column_cuts_by_band(tiling):
    bands = {}
    for tile in tiling.tiles:
        bands.setdefault(tile.row_start, [0]).append(tile.column_stop)
    return list(bands.values())


@pytest.mark.parametrize("name", TILINGS)
@given(rows=st.integers(1, 90), columns=st.integers(1, 90), short=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_index_lies_in_exactly_one_tile(name, rows, columns, short, seed):
    tiling = TILINGS[name](rows, columns, short, seed)
    assert tiling.shape == (rows, columns)
    assert tiling.covers_exactly()


def test_a_gap_and_an_overlap_are_seen():
    whole = product_tiling([0, 4], [0, 2, 5])
    assert whole.covers_exactly()
    assert not Tiling((4, 5), whole.tiles[:1]).covers_exactly()
    assert not Tiling((4, 5), (*whole.tiles, whole.tiles[0])).covers_exactly()


def test_the_letters_follow_the_substitution():
    word = "L"
    for _ in range(12):
        word = "".join("LS" if letter == "L" else "L" for letter in word)
    assert fibonacci_letters(200) == word[:200]


def test_the_letters_have_the_golden_ratio_and_never_two_short_ones_in_a_row():
    letters = fibonacci_letters(10_000, start=17)
    assert "SS" not in letters
    assert "LLL" not in letters
    assert letters.count("L") / letters.count("S") == pytest.approx(GOLDEN, rel=1e-3)


def test_sides_are_multiples_of_16_where_the_short_one_is():
    assert long_width(96) == 160
    cuts = fibonacci_cuts(4096, 96)
    assert all(width in (96, 160) for width in widths(cuts)[:-1])
    assert set(widths(fibonacci_cuts(100, 5))[:-1]) == {5, 8}


def test_the_fibonacci_chain_has_no_period_but_the_periodic_one_has():
    fibonacci = widths(fibonacci_cuts(20_000, 5))[:-1]
    assert not any(fibonacci[period:] == fibonacci[:-period] for period in range(1, len(fibonacci) // 2))
    alternating = widths(column_cuts_by_band(periodic(10, 20_000, 5))[0])[:-1]
    assert alternating[2:] == alternating[:-2]


def test_neighbouring_bands_of_the_penrose_tiling_differ_and_none_comes_back():
    bands = column_cuts_by_band(TILINGS["penrose"](2000, 2000, 16, 0))
    assert all(first != second for first, second in itertools.pairwise(bands))
    assert len(column_cuts_by_band(TILINGS["fibonacci"](2000, 2000, 16, 0))) == len(bands)
    same = column_cuts_by_band(TILINGS["fibonacci"](2000, 2000, 16, 0))
    assert all(band == same[0] for band in same)


def test_the_penrose_tiling_keeps_two_widths_inside():
    bands = column_cuts_by_band(TILINGS["penrose"](2000, 2000, 16, 0))
    assert {width for band in bands for width in widths(band)[1:-1]} == {16, long_width(16)}


def test_the_shuffled_tiling_has_the_same_widths_in_another_order():
    fibonacci = column_cuts_by_band(TILINGS["fibonacci"](10, 900, 16, 0))[0]
    shuffled = column_cuts_by_band(TILINGS["shuffled"](10, 900, 16, 3))[0]
    assert sorted(widths(fibonacci)) == sorted(widths(shuffled))
    assert fibonacci != shuffled
    assert shuffled != column_cuts_by_band(TILINGS["shuffled"](10, 900, 16, 4))[0]


def test_the_grid_has_about_as_many_tiles():
    num_grid = len(TILINGS["grid"](4096, 4096, 96, 0).tiles)
    assert num_grid == pytest.approx(len(TILINGS["fibonacci"](4096, 4096, 96, 0).tiles), rel=0.15)


def test_bands_may_have_their_own_cuts():
    assert banded_tiling([0, 2, 3], [[0, 4], [0, 1, 4]]).covers_exactly()


def test_a_short_side_below_one_is_refused():
    with pytest.raises(ValueError, match=r"short=0 .*tiling\.short"):
        fibonacci_cuts(10, 0)
