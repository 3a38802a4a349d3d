"""The default coding, every entry rounded once, some rows at a time.

What `matrix.encode_matrix` does for a matrix in memory, for one that is not: rows are coded
independently of each other, and the inputs' second moment may be diagonal blocks, with feedback
inside each block only. R rows at a time, K blocks, W columns of the widest block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from quasitile.codec.block import Tile, Tiling
from quasitile.codec.coding import Coding
from quasitile.codec.factors import damped_cholesky, scale_codes, scale_values
from quasitile.codec.matrix import residual_codes


@dataclass(frozen=True)
class InputSide:
    """What coding needs to know of the inputs of a matrix.

    Attributes:
        column_codes: (N,) uint8, see `factors.scale_values`.
        lower: (K, W, W) blocks of the Cholesky factor of the scaled and damped second moment, padded with zeros; float32.
        edges: Where the blocks begin and end, 0 and N included.
    """

    column_codes: Tensor
    lower: Tensor
    edges: tuple[int, ...]

    def dense(self) -> Tensor:
        """The factor (N, N), with zeros between its blocks."""
        sizes = [stop - start for start, stop in pairwise(self.edges)]
        return torch.block_diag(*(block[:size, :size] for block, size in zip(self.lower, sizes, strict=True)))


@dataclass(frozen=True)
class CodedRows:
    """Some rows.

    Attributes:
        points: (R, N) whole numbers, in steps, or in half steps where there is a trellis.
        damage: Predicted, in nats a token.
        squared_error: Of the weights.
    """

    points: Tensor
    damage: float
    squared_error: float


def is_plain(coding: Coding) -> bool:
    """Whether this module codes it."""
    return coding.entries_only and coding.inputs == "correlated" and coding.prices == "rows"


def unit_of(step: float, coding: Coding) -> float:
    """What a point is worth."""
    return step if coding.trellis == 1 else step / 2


def block_edges(num_columns: int, block_bytes: int, cuts: Sequence[int] = ()) -> list[int]:
    """Where the blocks of a second moment begin and end: one block if it fits, else about equal ones that do.

    Args:
        num_columns: N.
        block_bytes: Of the largest block, float32.
        cuts: Where column bands of the tiling end; blocks end there where that leaves them small enough.
    """
    widest = max(1, int((block_bytes / 4) ** 0.5))
    if num_columns <= widest:
        return [0, num_columns]
    edges = [0]
    while edges[-1] < num_columns:
        left = num_columns - edges[-1]
        wanted = -(-left // -(-left // widest))  # the rest in equal parts
        best = [cut for cut in cuts if edges[-1] < cut <= edges[-1] + widest]
        stop = min(best, key=lambda cut: abs(cut - edges[-1] - wanted)) if best and left > widest else edges[-1] + wanted
        edges.append(min(stop, num_columns))
    return edges


def column_cuts(tiling: Tiling) -> list[int]:
    """Columns at which every row band of a tiling is cut."""
    bands: dict[int, set[int]] = {}
    for tile in tiling.tiles:
        bands.setdefault(tile.row_start, set()).add(tile.column_stop)
    return sorted(set.intersection(*bands.values()))


def input_side(moment: Tensor, edges: Sequence[int], coding: Coding) -> InputSide:
    """Scales and Cholesky factors of the inputs (see `matrix.scaled`), block by block.

    Args:
        moment: (N, N), or (K, W, W) blocks padded with zeros.
        edges: Of the blocks.
        coding: Its damping counts.
    """
    blocks = moment[None] if moment.ndim == 2 else moment
    sizes = [stop - start for start, stop in pairwise(edges)]
    powers = torch.cat([block.diagonal()[:size] for block, size in zip(blocks, sizes, strict=True)]).float()
    roots = powers.clamp_min(coding.damping * float(powers.mean()) + 1e-30).sqrt()
    usual = float((powers / roots.square()).mean())
    lower, column_codes = torch.zeros(blocks.shape), torch.empty(edges[-1], dtype=torch.uint8)
    for place, (block, start, stop) in enumerate(zip(blocks, edges, edges[1:], strict=False)):
        size, root = stop - start, roots[start:stop]
        even = (block[:size, :size].float() / root).div_(root[:, None])
        own = max(float(even.diagonal().mean()), 1e-30)
        factor = damped_cholesky(even, coding.damping_of(edges[-1]) * usual / own, torch.float32).mul_(root[:, None])
        column_codes[start:stop] = scale_codes(factor.diagonal())
        lower[place, :size, :size] = factor.div_(scale_values(column_codes[start:stop])[:, None])
    return InputSide(column_codes, lower, tuple(edges))


def row_scale_codes(outputs: Tensor, coding: Coding) -> Tensor:
    """Scales of the rows (M,) uint8 from the outputs' gradients (see `matrix.scaled`)."""
    gradients = outputs.double()
    return scale_codes((gradients + coding.row_damping * gradients.mean()).sqrt())


def part_of(tiles: Iterable[Tile], rows: slice, columns: slice) -> Tiling:
    """The part of a tiling that lies in some rows and columns, counted from their first."""
    parts = [
        Tile(
            max(tile.row_start, rows.start) - rows.start,
            min(tile.row_stop, rows.stop) - rows.start,
            max(tile.column_start, columns.start) - columns.start,
            min(tile.column_stop, columns.stop) - columns.start,
        )
        for tile in tiles
        if tile.row_start < rows.stop
        and tile.row_stop > rows.start
        and tile.column_start < columns.stop
        and tile.column_stop > columns.start
    ]
    return Tiling((rows.stop - rows.start, columns.stop - columns.start), tuple(parts))


def code_rows(weight: Tensor, row_scales: Tensor, side: InputSide, tiling: Tiling, step: float, coding: Coding) -> CodedRows:
    """Round rows with feedback between columns (see `matrix.residual_codes`).

    Where a tile lies on both sides of a block's edge and a row's path runs through all of it, all
    blocks are searched at once, with zeros between them.

    Args:
        weight: (R, N), any float dtype.
        row_scales: (R,) float32.
        side: Of the inputs.
        tiling: Of these rows.
        step: Rounding step.
        coding: How.
    """
    columns = scale_values(side.column_codes)
    target = (weight.float() * row_scales[:, None]).mul_(columns)
    blocks = list(zip(side.edges, side.edges[1:], side.lower, strict=False))
    straddles = any(t.column_start < edge < t.column_stop for edge in side.edges[1:-1] for t in tiling.tiles)
    if coding.trellis > 1 and straddles:
        blocks = [(0, side.edges[-1], side.dense())]
    points, unit, damage = torch.empty_like(target), unit_of(step, coding), 0.0
    everything = slice(0, len(target))
    for start, stop, block in blocks:
        lower, inside = block[: stop - start, : stop - start], slice(start, stop)
        part = part_of(tiling.tiles, everything, inside)
        found, exact = residual_codes(target[:, inside], lower, part, step, coding)
        norms = torch.linalg.vector_norm(exact.sub(found).float(), dim=0).double() * lower.diagonal()
        damage += 0.5 * unit**2 * float(norms.square().sum())
        points[:, inside] = found
    error = target.sub_(points, alpha=unit).div_(columns).div_(row_scales[:, None])
    return CodedRows(points, damage, float(error.square_().sum(dtype=torch.float64)))
