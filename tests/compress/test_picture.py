"""The picture of a tiling is well-formed, shows every tile once and says what the colours mean."""

from xml.etree import ElementTree

import pytest

from quasitile.codec.tiling import TILINGS
from quasitile.compress.picture import COLOURS, LARGEST, tiling_svg


def parts(svg, kind):
    return [e for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect") if e.get("class") == kind]


def texts(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (700, 30)])
def test_every_tile_is_one_rectangle_and_together_they_fill_the_matrix(name, shape):
    tiling = TILINGS[name](*shape, 16, 0)
    svg = tiling_svg(tiling, name)
    drawn = parts(svg, "tile")
    assert len(drawn) == len(tiling.tiles)
    scale = LARGEST / max(shape)
    for tile, rectangle in zip(tiling.tiles, drawn, strict=True):
        place = [float(rectangle.get(key)) for key in ("x", "y", "width", "height")]
        rows, columns = tile.shape
        expected = [scale * number for number in (tile.column_start, tile.row_start, columns, rows)]
        assert place == pytest.approx(expected, abs=0.01)


def test_a_colour_is_a_shape_and_the_legend_counts_its_tiles():
    tiling = TILINGS["fibonacci"](416 + 256, 416 + 256, 96, 0)
    svg = tiling_svg(tiling, "four shapes")
    colour_of = {}
    for tile, rectangle in zip(tiling.tiles, parts(svg, "tile"), strict=True):
        assert colour_of.setdefault(tile.shape, rectangle.get("fill")) == rectangle.get("fill")
    assert len(set(colour_of.values())) == len(colour_of) == len(parts(svg, "swatch")) == 4
    assert "160 x 160: 9 tiles, 51.0 % of the area" in texts(svg)
    assert "96 x 160: 6 tiles, 20.4 % of the area" in texts(svg)


@pytest.mark.parametrize(("name", "num_coloured"), [("hierarchical", len(COLOURS)), ("penrose", 4)])
def test_shapes_beyond_the_palette_and_small_rests_share_a_colour(name, num_coloured):
    tiling = TILINGS[name](1000, 1100, 16, 0)
    svg = tiling_svg(tiling, "many shapes")
    assert len(parts(svg, "swatch")) == num_coloured + 1
    counts = [int(text.split(": ")[1].split()[0]) for text in texts(svg) if "of the area" in text]
    assert sum(counts) == len(tiling.tiles)


def test_markup_in_a_name_stays_text():
    svg = tiling_svg(TILINGS["whole"](3, 3, 1, 0), "a <b> & c")
    assert texts(svg)[0] == "a <b> & c"
