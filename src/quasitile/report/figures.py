"""Figures as SVG, written by hand: colours come from the page's CSS, so that they follow light and dark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from quasitile.report.formats import COUNT, DASH, Format, number, plural, precise
from quasitile.report.load import Rows

Point = tuple[float, float]
WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 14, 42
MAX_POINTS = 500
MAX_TILES = 12_000
NUM_COLOURS = 7


@dataclass(frozen=True)
class Line:
    """A series of a chart: `style` is `line`, `dots` or `crosses`; `css` names its colour."""

    label: str
    css: str
    points: list[Point]
    style: str = "line"


@dataclass(frozen=True)
class Figure:
    """An SVG with its title, a caption, and a legend of (css class, style, label)."""

    title: str
    caption: str
    svg: Markup
    legend: list[tuple[str, str, str]] = field(default_factory=list)


def series(rows: Rows, y: str, x: str = "") -> list[Point]:
    """The points of `rows` that have a `y`, at their `x`; without one they are counted from 1."""
    points = []
    for index, row in enumerate(rows, 1):
        height, across = number(row.get(y)), number(row.get(x)) if x else float(index)
        if height is not None and across is not None:
            points.append((across, height))
    return points


def thinned(points: list[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: means over equal runs of neighbours; the x is the run's last."""
    if len(points) <= limit:
        return points
    edges = [index * len(points) // limit for index in range(limit + 1)]
    runs = [points[start:stop] for start, stop in pairwise(edges)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Round numbers that enclose `[low, high]`, about `num` of them, in steps of 1, 2 or 5."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / num))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * num >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def chart(
    ident: str,
    title: str,
    caption: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    look: Format | None = None,
    zero: bool = False,
) -> Figure | None:
    """A line chart, or `None` where there is nothing to draw.

    Args:
        ident: Unique on the page; names the SVG's title and description.
        title: What is shown.
        caption: What it means.
        lines: The series.
        x_label: The horizontal axis with its unit.
        y_label: The vertical axis with its unit.
        look: How numbers on the vertical axis are printed; short by default.
        zero: Whether the vertical axis starts at zero.
    """
    lines = [Line(line.label, line.css, thinned(line.points), line.style) for line in lines if line.points]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = ticks(min(0.0, *ys) if zero else min(ys), max(ys))
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    x_ticks = [x for x in ticks(x_low, x_high) if x_low <= x <= x_high and x == int(x)]

    def place(x: float, y: float) -> Point:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    shorten = look or _tick_text(y_ticks)
    parts = [_axes(place, x_ticks, y_ticks, shorten), *(_drawn(line, place) for line in lines)]
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    ends = "; ".join(f"{line.label}: {plural(len(line.points), 'point')}, {_ends(line)}" for line in lines)
    described = f"{y_label} by {x_label}. {ends}."
    svg = _svg(ident, title, described, WIDTH, HEIGHT, "".join(parts), "chart")
    return Figure(
        title, f"{y_label[:1].upper()}{y_label[1:]}. {caption}", svg, [(line.css, line.style, line.label) for line in lines]
    )


def _ends(line: Line) -> str:
    return f"first {precise(line.points[0][1])}, last {precise(line.points[-1][1])}"


def _tick_text(values: list[float]) -> Callable[[float], str]:
    step = values[1] - values[0]
    return Format(max(0, -math.floor(math.log10(step) + 1e-9))) if step >= 1e-4 else precise


def _axes(
    place: Callable[[float, float], Point], x_ticks: list[float], y_ticks: list[float], shorten: Callable[[float], str]
) -> str:
    parts = []
    for y in y_ticks:
        _, height = place(0, y)
        kind = "base" if y == y_ticks[0] else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4}" text-anchor="end">{escape(shorten(y))}</text>')
    for x in x_ticks:
        across, _ = place(x, y_ticks[0])
        parts.append(f'<path class="base" d="M{across} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(COUNT(x))}</text>')
    return "".join(parts)


def _drawn(line: Line, place: Callable[[float, float], Point]) -> str:
    spots = [place(x, y) for x, y in line.points]
    if line.style == "crosses":
        return f'<path class="crosses {line.css}" d="{"".join(f"M{x - 4} {y - 4}l8 8m0-8l-8 8" for x, y in spots)}"/>'
    if line.style == "dots" or len(spots) == 1:
        return f'<path class="dots {line.css}" d="{"".join(f"M{x} {y}h0" for x, y in spots)}"/>'
    return f'<path class="line {line.css}" d="M{"L".join(f"{x} {y}" for x, y in spots)}"/>'


def _svg(ident: str, title: str, described: str, width: float, height: float, body: str, css: str) -> Markup:
    """The frame of a figure, with the name and description that a screen reader speaks."""
    head = f'<svg class="{css}" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{ident}-title {ident}-text">'
    names = f'<title id="{ident}-title">{escape(title)}</title><desc id="{ident}-text">{escape(described)}</desc>'
    return Markup(f"{head}{names}{body}</svg>")


@dataclass(frozen=True)
class Band:
    """A colour of the tiling's legend: its range, and the share of tiles in it."""

    css: str
    label: str
    num_tiles: int
    share: float


@dataclass(frozen=True)
class TilingPicture:
    """The picture of one matrix and its legend."""

    svg: Markup
    bands: list[Band]
    caption: str
    measure: str


def bands_of(values: Sequence[float], num: int = NUM_COLOURS) -> list[float]:
    """Upper edges of at most `num` colours: one a value where they are few, else equal shares of the tiles."""
    distinct = sorted(set(values))
    if len(distinct) <= num:
        return distinct
    counts, edges, inside, left = Counter(values), [], 0, len(values)
    for value in distinct:
        inside += counts[value]
        if inside * (num - len(edges)) >= left:
            edges.append(value)
            inside, left = 0, left - inside
    return edges


def tiling_picture(picture: dict[str, Any]) -> TilingPicture | None:
    """One matrix's tiles, coloured by rank, or by bits per weight where all ranks are equal."""
    shape, all_tiles = picture.get("shape"), picture.get("tiles")
    if not (isinstance(shape, list) and len(shape) == 2 and isinstance(all_tiles, list) and all_tiles):
        return None
    tiles, height, width = cropped(all_tiles, *shape)
    by_rank = len({tile[4] for tile in tiles}) > 1 or len({round(tile_bits(tile), 2) for tile in tiles}) == 1
    values = [float(tile[4]) if by_rank else round(tile_bits(tile), 2) for tile in tiles]
    look = COUNT if by_rank else Format(2)
    edges = bands_of(values)
    stretch = max(1.0, height / width / 1.2), max(1.0, width / height / 3.0)
    view_width = 720.0
    view_height = view_width * height * stretch[1] / (width * stretch[0])
    across, down = view_width / width, view_height / height
    paths, bands, below = [], [], -math.inf
    for index, edge in enumerate(edges):
        inside = [tile for tile, value in zip(tiles, values, strict=True) if below < value <= edge]
        low = min(value for value in values if below < value <= edge)
        label = look(edge) if low == edge else f"{look(low)}{DASH}{look(edge)}"
        shade = f"tile-{round(index * (NUM_COLOURS - 1) / max(1, len(edges) - 1)) if len(edges) > 1 else 3}"
        d = "".join(
            f"M{c0 * across:.1f} {r0 * down:.1f}H{c1 * across:.1f}V{r1 * down:.1f}H{c0 * across:.1f}Z"
            for r0, r1, c0, c1, *_ in inside
        )
        kind = "rank" if by_rank else "bits per weight"
        paths.append(
            f'<path class="{shade}" d="{d}"><title>{kind} {escape(label)}: {plural(len(inside), "tile")}</title></path>'
        )
        bands.append(Band(shade, label, len(inside), len(inside) / len(tiles)))
        below = edge
    measure = "Rank" if by_rank else "Bits per weight"
    described = f"{plural(len(tiles), 'tile')}; " + "; ".join(f"{measure.lower()} {b.label}: {b.num_tiles}" for b in bands)
    svg = _svg(
        "tiling",
        f"Tiles of {picture.get('name', 'one matrix')}",
        described,
        view_width,
        round(view_height, 1),
        "".join(paths),
        "tiling",
    )
    caption = f"{COUNT(shape[0])} rows by {COUNT(shape[1])} columns, {plural(len(all_tiles), 'tile')}."
    if len(tiles) < len(all_tiles):
        caption += f" Drawn: the upper left {COUNT(height)} by {COUNT(width)}, {plural(len(tiles), 'tile')}."
    if max(stretch) > 1:
        caption += " Rows and columns are not to the same scale."
    if not by_rank:
        caption += f" Every tile has rank {COUNT(tiles[0][4])}, so the colour shows bits per weight instead."
    return TilingPicture(svg, bands, caption, measure)


def tile_bits(tile: list[float]) -> float:
    """Stored bits per weight of a tile."""
    row_start, row_stop, column_start, column_stop, _, stored_bytes = tile[:6]
    return 8 * stored_bytes / max(1, (row_stop - row_start) * (column_stop - column_start))


def cropped(tiles: list[list[float]], num_rows: int, num_columns: int) -> tuple[list[list[float]], float, float]:
    """The tiles of the largest upper left part that holds at most `MAX_TILES`, and its height and width."""
    share, kept = 1.0, tiles
    while len(kept) > MAX_TILES:
        share *= 0.9 * math.sqrt(MAX_TILES / len(kept)) if len(kept) > 2 * MAX_TILES else 0.9
        kept = [tile for tile in tiles if tile[1] <= share * num_rows and tile[3] <= share * num_columns]
    if kept is tiles:
        return tiles, num_rows, num_columns
    return kept, max((tile[1] for tile in kept), default=1), max((tile[3] for tile in kept), default=1)
