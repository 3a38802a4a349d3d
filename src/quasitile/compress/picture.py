"""A picture of a tiling as SVG: every tile in its place, coloured by its shape."""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.sax.saxutils import escape

from quasitile.codec.block import Block, CodedMatrix, Tile, Tiling
from quasitile.codec.factors import code_bits

# Light enough for dark lines between them, and apart for colour-blind readers (after Paul Tol's "light" scheme).
COLOURS = ("#77aadd", "#ee8866", "#eedd88", "#44bb99", "#ffaabb", "#99ddff", "#bbcc33", "#c5a3d9")
OTHER = "#d5d5d0"  # shapes that cover little, mostly tiles cut off by the edge
LEAST_SHARE = 0.02  # of the area, for a colour of its own
LARGEST = 720  # pixels of the longer side
LEFT, TOP, LEGEND_WIDTH, LINE = 44, 92, 380, 26


def tiling_svg(tiling: Tiling, title: str, note: str = "") -> str:
    """A tiling as the text of an SVG file.

    The shapes that cover most of the matrix have a colour and a line in the legend each (rows x
    columns, number of tiles, share of the area); all others share one. Tiles are `rect` elements of
    class `tile`, in true proportion.

    Args:
        tiling: Any tiling.
        title: The headline.
        note: What the second line ends with.
    """
    num_rows, num_columns = tiling.shape
    scale = LARGEST / max(tiling.shape)
    height, width = num_rows * scale, num_columns * scale
    counts = Counter(tile.shape for tile in tiling.tiles)
    by_area = sorted(counts, key=lambda shape: (-counts[shape] * shape[0] * shape[1], shape))
    least = LEAST_SHARE * num_rows * num_columns
    common = [shape for shape in by_area if counts[shape] * shape[0] * shape[1] >= least] or by_area[:1]
    colours: dict[tuple[int, int], str] = dict(zip(common, COLOURS, strict=False))
    stroke = min(1.0, 0.08 * scale * min(map(min, colours)))
    drawn = "".join(_tile(tile, scale, colours.get(tile.shape, OTHER)) for tile in tiling.tiles)
    shapes = f"{len(counts)} shapes" if len(counts) > 1 else "one shape"
    below = " · ".join(filter(None, (f"{num_rows} x {num_columns}", f"{len(tiling.tiles)} tiles of {shapes}", note)))
    legend, legend_height = _legend(counts, colours, num_rows * num_columns, LEFT + width + 28)
    page_width = max(LEFT + width + 28 + LEGEND_WIDTH, 16 + 12.5 * len(title), 16 + 7 * len(below))
    page_height = TOP + max(height, legend_height) + 20
    middle = TOP + height / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page_width:.0f} {page_height:.0f}" '
        f'width="{page_width:.0f}" height="{page_height:.0f}" font-family="system-ui, sans-serif" fill="#1b1f22" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect class="paper" width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="16" y="30" font-size="19" font-weight="600">{escape(title)}</text>\n'
        f'<text x="16" y="54" font-size="13" fill="#565d63">{escape(below)}</text>\n'
        f'<text x="{LEFT}" y="{TOP - 8}" font-size="12" fill="#565d63">{num_columns} columns</text>\n'
        f'<text transform="translate({LEFT - 10} {middle:.1f}) rotate(-90)" font-size="12" fill="#565d63" '
        f'text-anchor="middle">{num_rows} rows</text>\n'
        f'<g transform="translate({LEFT} {TOP})" stroke="#1b1f22" stroke-width="{stroke:.3f}">\n{drawn}</g>\n'
        f"{legend}</svg>\n"
    )


def _tile(tile: Tile, scale: float, colour: str) -> str:
    rows, columns = tile.shape
    return (
        f'<rect class="tile" x="{tile.column_start * scale:.2f}" y="{tile.row_start * scale:.2f}" '
        f'width="{columns * scale:.2f}" height="{rows * scale:.2f}" fill="{colour}"/>\n'
    )


def _legend(counts: Counter[tuple[int, int]], colours: dict[tuple[int, int], str], area: int, x: float) -> tuple[str, float]:
    """A line a coloured shape, one for all others, and the height of it all."""
    lines = [
        (colour, f"{rows} x {columns}", counts[rows, columns], counts[rows, columns] * rows * columns)
        for (rows, columns), colour in colours.items()
    ]
    rest = [shape for shape in counts if shape not in colours]
    if rest:
        covered = sum(counts[shape] * shape[0] * shape[1] for shape in rest)
        lines.append((OTHER, f"{len(rest)} other shape{'s' * (len(rest) > 1)}", sum(counts[shape] for shape in rest), covered))
    text = ""
    for number, (colour, name, count, covered) in enumerate(lines):
        y = TOP + LINE * number
        tiles = "tile" if count == 1 else "tiles"
        text += (
            f'<rect class="swatch" x="{x:.1f}" y="{y}" width="16" height="16" fill="{colour}" stroke="#1b1f22"/>\n'
            f'<text x="{x + 26:.1f}" y="{y + 13}" font-size="13">{name}: {count} {tiles}, '
            f"{100 * covered / area:.1f} % of the area</text>\n"
        )
    return text, LINE * len(lines)


def layout(name: str, stored: CodedMatrix) -> dict[str, Any]:
    """The layout of one matrix: a row a tile, for the report."""
    tiles = [
        [t.row_start, t.row_stop, t.column_start, t.column_stop, block.rank, round(tile_bits(block) / 8)]
        for t, block in zip(stored.tiling.tiles, stored.blocks, strict=True)
    ]
    return {"name": name, "shape": list(stored.tiling.shape), "tiles": tiles}


def tile_bits(block: Block) -> float:
    """About the bits of one tile's codes, from their entropy."""
    bits = sum(code_bits(codes) for codes in (block.left, block.right) if codes.numel())
    if block.residual is not None:
        counts = block.residual.unique(return_counts=True)[1].double()
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits
