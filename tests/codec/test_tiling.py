"""Tilings cover exactly, are what their names say, and differ where they should."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.codec.block import Tile, Tiling
from quasitile.codec.tiling import (
    GOLDEN,
    SUPERTILE_LEVEL,
    TILINGS,
    banded_tiling,
    cuts_of_widths,
    fibonacci_cuts,
    fibonacci_letters,
    hierarchical,
    long_width,
    periodic,
    product_tiling,
    supertiles,
)


def widths(cuts):
    return [after - before for before, after in itertools.pairwise(cuts)]


def column_cuts_by_band(tiling):
    bands = {}
    for tile in tiling.tiles:
        bands.setdefault(tile.row_start, [0]).append(tile.column_stop)
    return list(bands.values())


@pytest.mark.parametrize("name", TILINGS)
@settings(deadline=None)
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


def test_neighbouring_bands_of_the_penrose_tiling_differ_and_those_of_the_fibonacci_tiling_do_not():
    bands = column_cuts_by_band(TILINGS["penrose"](2000, 2000, 16, 0))
    assert all(first != second for first, second in itertools.pairwise(bands))
    assert len({tuple(band) for band in bands}) > len(bands) / 2
    same = column_cuts_by_band(TILINGS["fibonacci"](2000, 2000, 16, 0))
    assert len(same) == len(bands)
    assert all(band == same[0] for band in same)


def edge_pictures(tiling):
    """Where a tile begins: at which indices in each row of indices, and in each column."""
    starts = torch.zeros(2, *tiling.shape, dtype=torch.bool)
    for tile in tiling.tiles:
        starts[0, tile.row_start, tile.columns] = True
        starts[1, tile.rows, tile.column_start] = True
    return starts


def shifts_onto_itself(tiling, reach):
    """Shifts (down, right) of less than `reach` that map the layout onto itself wherever both lie on the matrix.

    The last tiles are cut short by the matrix, and the first edge of all is its border, so borders are left out.
    """
    starts = edge_pictures(tiling)[:, 1:, 1:]
    rows, columns = starts.shape[1:]
    found = []
    for down, right in itertools.product(range(reach), range(-reach + 1, reach)):
        if not (down or right):
            continue
        here = starts[:, down:, max(right, 0) : columns + min(right, 0)]
        there = starts[:, : rows - down, max(-right, 0) : columns - max(right, 0)]
        if torch.equal(here, there):
            found.append((down, right))
    return found


@pytest.mark.parametrize(("name", "reach"), [("fibonacci", 80), ("hierarchical", 80), ("penrose", 150)])
@pytest.mark.parametrize("seed", [0, 3])
def test_no_shift_maps_an_aperiodic_tiling_onto_itself(name, reach, seed):
    # A part of the Fibonacci word may come up to 3.62 times in a row, so shifts of more than a third can fit by chance.
    assert not shifts_onto_itself(TILINGS[name](300, 300, 5, seed), reach)


def test_shifts_by_both_widths_map_the_periodic_tiling_onto_itself():
    found = shifts_onto_itself(periodic(300, 300, 5), reach=40)
    period = long_width(5) + 5
    assert found == [
        (down, right) for down in range(0, 40, period) for right in range(-(39 // period) * period, 40, period) if down or right
    ]


def test_the_penrose_tiling_has_no_shift_along_a_band_either():
    bands = [widths(band)[1:-1] for band in column_cuts_by_band(TILINGS["penrose"](60, 4000, 5, 0))]
    assert all(band[period:] != band[:-period] for band in bands for period in range(1, len(band) // 4))


def test_deflating_everything_gives_the_fibonacci_tiling_and_nothing_its_supertiles():
    def many(tile):
        return 1.0 if max(tile.shape) <= long_width(16) else 1e9

    def few(tile):
        return 1.0

    assert hierarchical(900, 700, 16, 0, cost=many) == TILINGS["fibonacci"](900, 700, 16, 0)
    coarse = hierarchical(900, 700, 16, 0, cost=few)
    sides = {"L": 2 * long_width(16) + 16, "S": long_width(16) + 16}
    expected = cuts_of_widths([sides[letter] for letter in fibonacci_letters(40)], 700)
    assert all(band == expected for band in column_cuts_by_band(coarse))


def slowest_search(row, columns, short, cost):
    """The least cost over every way to deflate a row of supertiles in bands."""

    def ways(stretch):
        parts = stretch.deflated(short)
        if parts == [stretch]:
            return [[stretch]]
        deeper = [[*first, *rest] for first in ways(parts[0]) for rest in (ways(parts[1]) if len(parts) > 1 else [[]])]
        return [[stretch], *deeper]

    def price(band, parts):
        return sum(cost(Tile(band.start, band.stop, part.start, part.stop)) for part in parts)

    def least(band):
        return sum(min(price(band, parts) for parts in ways(column)) for column in columns)

    return min(sum(least(band) for band in bands) for bands in ways(row))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 200), num_rows=st.integers(1, 30), num_columns=st.integers(1, 30))
def test_the_cost_of_the_hierarchical_tiling_is_the_least_of_all(seed, num_rows, num_columns):
    def cost(tile):
        corners = (tile.row_start, tile.row_stop, tile.column_start, tile.column_stop)
        return hash((seed, *corners)) % 1000 * (2 + max(tile.shape))

    tiling = hierarchical(num_rows, num_columns, 3, seed, cost=cost, level=3)
    assert tiling.covers_exactly()
    least = sum(slowest_search(row, supertiles(num_columns, 3, seed, 3), 3, cost) for row in supertiles(num_rows, 3, seed, 3))
    assert sum(map(cost, tiling.tiles)) == pytest.approx(least)


def test_without_a_cost_tiles_are_small_where_both_letters_are_long():
    tiling = hierarchical(2000, 2000, 16, 0)
    rows, columns = (supertiles(2000, 16, 0, SUPERTILE_LEVEL) for _ in range(2))
    for row, column in itertools.product(rows[:-1], columns[:-1]):
        inside = [
            tile.shape
            for tile in tiling.tiles
            if row.start <= tile.row_start < row.stop and column.start <= tile.column_start < column.stop
        ]
        fine = (row.letter, column.letter) == ("L", "L")
        assert len(inside) == (9 if fine else 3 if row.letter == "L" else 1)
        assert not fine or all(max(shape) <= long_width(16) for shape in inside)


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
