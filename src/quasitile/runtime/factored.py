"""Factored execution: products with what is stored, never with the dense weight.

The factors of all tiles of a column band meet the inputs at once, those of all tiles of a row band
give the outputs at once: two grouped products, with fewer operations than the dense one where ranks
are low. A residual stays in whole numbers, one byte each.

M outputs, N inputs, T tokens, G bands of one group, K components of a band (padded to the largest in
its group), P rows, Q columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.codec.axes import SORTED
from quasitile.codec.block import Tile
from quasitile.codec.factors import scale_values
from quasitile.codec.spectrum import basis
from quasitile.codec.stored import StoredMatrix
from quasitile.codec.structure import Structure
from quasitile.runtime.accelerate import kernels_for
from quasitile.runtime.decode import chunks, in_threads

FEW_TOKENS = 4  # up to so many, products with whole numbers are faster than making them dense first
CHUNK_NUMBERS = 1 << 22  # of a residual made dense at a time
MOST_LARGE = 4e-3  # share of the points that may not fit into a byte


def can_be_factored(stored: StoredMatrix, structure: Structure | None) -> bool:
    """Whether a matrix can be used without making it dense: no structure, no other axes than sorted ones, plain points."""
    plain = stored.residual_transform in (None, "identity")
    return structure is None and plain and (stored.axes is None or stored.axes.kind == SORTED)


class Factored(nn.Module):
    """A matrix (M, N) as grouped factors, a residual of whole numbers, or both.

    Args:
        stored: For which `can_be_factored`.
        dtype: Of the factors.
    """

    order: Any

    def __init__(self, stored: StoredMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = stored.tiling.shape
        order = stored.axes.codes[0] if stored.axes is not None else torch.arange(self.shape[1])
        self.register_buffer("order", order if stored.axes is not None else None, persistent=False)
        with torch.inference_mode(False), torch.no_grad():
            self.factors = GroupedFactors(stored, order, dtype) if int(stored.ranks.sum()) else None
            self.residual = WholeNumbers(stored) if stored.residual_transform is not None else None

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`(..., N) -> (..., M)`."""
        flat = x.reshape(-1, self.shape[1])
        y = self.factors(flat) if self.factors is not None else None
        if self.residual is not None:
            rest = self.residual(flat if self.order is None else flat[:, self.order])
            y = rest if y is None else y + rest
        if y is None:
            y = flat.new_zeros(len(flat), self.shape[0])
        y = y.view(*x.shape[:-1], self.shape[0])
        return y if bias is None else y + bias

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (..., N) of the weight."""
        flat = indices.flatten()
        out = torch.zeros(len(flat), self.shape[1], dtype=dtype, device=flat.device)
        if self.residual is not None:
            rest = self.residual.rows(flat).to(dtype)
            if self.order is None:
                out = rest
            else:
                out[:, self.order] = rest
        if self.factors is not None:
            out = out + self.factors.rows(flat).to(dtype)
        return out.view(*indices.shape, -1)


@dataclass(frozen=True)
class _Band:
    """Tiles with components in one range of rows or columns, and where their components lie among all."""

    start: int
    stop: int
    parts: list[tuple[Tensor, int]]  # (rows or columns, rank), place of the first component

    @property
    def rank(self) -> int:
        """Of all its tiles together."""
        return sum(part.shape[1] for part, _ in self.parts)


class GroupedFactors(nn.Module):
    """U and V of all tiles, as batches of products over bands of the same width.

    Args:
        stored: A matrix with components.
        order: (N,) which input each tiled column meets.
        dtype: Of U and V.
    """

    right_0: Any
    outputs: Any

    def __init__(self, stored: StoredMatrix, order: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_rows, self.num_columns = stored.tiling.shape
        rows, columns = scale_values(stored.row_scales), scale_values(stored.column_scales)
        by_columns: dict[tuple[int, int], _Band] = {}
        by_rows: dict[tuple[int, int], _Band] = {}
        first = 0
        for tile, left, right in spatial_factors(stored):
            left, right = left / rows[tile.rows, None], right / columns[tile.columns, None]
            for bands, start, stop, part in (
                (by_rows, tile.row_start, tile.row_stop, left),
                (by_columns, tile.column_start, tile.column_stop, right),
            ):
                bands.setdefault((start, stop), _Band(start, stop, [])).parts.append((part.to(dtype), first))
            first += left.shape[1]
        place = torch.zeros(first, dtype=torch.long)  # of each component among the outputs of the first products
        self.num_inner = 0
        first_groups, second_groups = _grouped(list(by_columns.values())), _grouped(list(by_rows.values()))
        self.first_groups, self.second_groups = len(first_groups), len(second_groups)
        for number, group in enumerate(first_groups):
            width, most = group[0].stop - group[0].start, max(band.rank for band in group)
            right = torch.zeros(len(group), most, width, dtype=dtype)
            for g, band in enumerate(group):
                begin = 0
                for part, component in band.parts:
                    count = part.shape[1]
                    right[g, begin : begin + count] = part.T
                    place[component : component + count] = torch.arange(count) + self.num_inner + g * most + begin
                    begin += count
            self._keep(f"right_{number}", right)
            self._keep(f"inputs_{number}", torch.stack([order[band.start : band.stop] for band in group]))
            self.num_inner += len(group) * most
        outputs = []
        for number, group in enumerate(second_groups):
            height, most = group[0].stop - group[0].start, max(band.rank for band in group)
            left, inner = torch.zeros(len(group), height, most, dtype=dtype), torch.zeros(len(group), most, dtype=torch.long)
            for g, band in enumerate(group):
                begin = 0
                for part, component in band.parts:
                    count = part.shape[1]
                    left[g, :, begin : begin + count] = part
                    inner[g, begin : begin + count] = place[component : component + count]
                    begin += count
                outputs.append(torch.arange(band.start, band.stop))
            self._keep(f"left_{number}", left)
            self._keep(f"inner_{number}", inner)
        joined = torch.cat(outputs)
        self._keep("outputs", None if torch.equal(joined, torch.arange(self.num_rows)) else joined)

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(T, N) -> (T, M)`."""
        columns = x.T
        inner = []
        for number in range(self.first_groups):
            right, inputs = getattr(self, f"right_{number}"), getattr(self, f"inputs_{number}")
            inner.append(gathered_product(right, inputs, columns))  # (G, K, Q) (G, Q, T)
        middle = inner[0] if len(inner) == 1 else torch.cat(inner)
        parts = []
        for number in range(self.second_groups):
            left, index = getattr(self, f"left_{number}"), getattr(self, f"inner_{number}")
            parts.append(gathered_product(left, index, middle))  # (G, P, K) (G, K, T)
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.outputs is not None:
            y = torch.zeros(self.num_rows, len(x), dtype=y.dtype, device=y.device).index_copy(0, self.outputs, y)
        return y.T.to(x.dtype)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows (T, N) of the product."""
        device, dtype = indices.device, self.right_0.dtype
        place = torch.arange(self.num_rows, device=device)
        if self.outputs is not None:  # rows without components find the extra row of zeros
            place = torch.full((self.num_rows,), len(self.outputs), device=device)
            place = place.index_copy(0, self.outputs, torch.arange(len(self.outputs), device=device))
        place = place[indices]
        middle = torch.zeros(self.num_inner, len(indices), dtype=dtype, device=device)
        begin = 0
        for number in range(self.second_groups):
            left, index = getattr(self, f"left_{number}"), getattr(self, f"inner_{number}")
            count, height = left.shape[0] * left.shape[1], left.shape[1]
            token = ((place >= begin) & (place < begin + count)).nonzero().flatten()
            local = place[token] - begin
            middle.index_put_((index[local // height], token[:, None]), left.flatten(0, 1)[local], accumulate=True)
            begin += count
        out = torch.zeros(len(indices), self.num_columns, dtype=dtype, device=device)
        begin = 0
        for number in range(self.first_groups):
            right, inputs = getattr(self, f"right_{number}"), getattr(self, f"inputs_{number}")
            count = right.shape[0] * right.shape[1]
            part = torch.bmm(right.transpose(1, 2), middle[begin : begin + count].unflatten(0, right.shape[:2]))  # (G, Q, T)
            out.index_add_(1, inputs.flatten(), part.flatten(0, 1).T)
            begin += count
        return out


def spatial_factors(stored: StoredMatrix) -> Iterator[tuple[Tile, Tensor, Tensor]]:
    """Every tile that has components, with its U (P, R) and V (Q, R), their transforms undone, float32."""
    for chunk in chunks(stored):
        for tile, block in zip(stored.tiling.tiles[slice(*chunk)], stored.blocks(*chunk), strict=True):
            if block.rank:
                left = basis(stored.transform, tile.shape[0]).T @ (block.left * block.scale)
                yield tile, left, basis(stored.transform, tile.shape[1]).T @ block.right


def gathered_product(weights: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Products of bands with the inputs that each meets, (G M, T) in the dtype of `weights`.

    Args:
        weights: (G, M, K).
        index: (G, K) rows of `values`.
        values: (inputs, T).
    """
    if (kernels := kernels_for(values)) is not None:
        return kernels.gathered_product(weights, index, values, weights.dtype)
    return torch.bmm(weights, values[index].to(weights.dtype)).flatten(0, 1)


def _grouped(bands: list[_Band]) -> list[list[_Band]]:
    """Bands of the same width together, in the order of their first."""
    groups: dict[int, list[_Band]] = {}
    for band in bands:
        groups.setdefault(band.stop - band.start, []).append(band)
    return list(groups.values())


class WholeNumbers(nn.Module):
    """A residual of whole numbers, a byte each; the few that do not fit into a byte beside it.

    Args:
        stored: A matrix with a residual in no transform.

    Raises:
        OverflowError: Too many do not fit.
    """

    codes: Tensor
    row_values: Tensor
    column_values: Tensor
    large_rows: Tensor
    large_columns: Tensor
    large_extra: Tensor

    def __init__(self, stored: StoredMatrix) -> None:
        super().__init__()
        codes = torch.empty(stored.tiling.shape, dtype=torch.int8)
        large: list[tuple[Tensor, Tensor, Tensor]] = []
        top = 0
        for points in in_threads(lambda chunk: torch.from_numpy(stored.points(*chunk)), chunks(stored)):
            clipped = points.clamp(-127, 127)
            codes[top : top + len(points)] = clipped
            row, column = (points != clipped).nonzero(as_tuple=True)
            large.append((row + top, column, (points - clipped)[row, column].float()))
            top += len(points)
        rows, columns, extra = (torch.cat(parts) for parts in zip(*large, strict=True))
        if len(rows) > MOST_LARGE * codes.numel():
            raise OverflowError("too many points do not fit into a byte")
        for name, tensor in {
            "codes": codes,
            "row_values": stored.step / scale_values(stored.row_scales),
            "column_values": 1 / scale_values(stored.column_scales),
            "large_rows": rows,
            "large_columns": columns,
            "large_extra": extra,
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(T, N) -> (T, M)`."""
        scaled = (x.float() * self.column_values).to(x.dtype)
        kernels = kernels_for(x)
        if kernels is not None:
            y = kernels.whole_number_product(self.codes, scaled, self.row_values)
            if not len(self.large_rows):
                return y
            extra = scaled[:, self.large_columns] * (self.large_extra * self.row_values[self.large_rows]).to(x.dtype)
            return y.index_add(1, self.large_rows, extra)
        if len(x) <= FEW_TOKENS and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            y = torch._weight_int8pack_mm(scaled, self.codes, torch.ones(len(self.codes), dtype=x.dtype))
        else:
            height = max(1, CHUNK_NUMBERS // self.codes.shape[1])
            parts = [nn.functional.linear(scaled, part.to(x.dtype)) for part in self.codes.split(height)]
            y = torch.cat(parts, 1)
        if len(self.large_rows):
            y = y.index_add(1, self.large_rows, scaled[:, self.large_columns] * self.large_extra.to(x.dtype))
        return (y.float() * self.row_values).to(x.dtype)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows (T, N), float32."""
        out = self.codes[indices].float()
        if len(self.large_rows):
            token, entry = (indices[:, None] == self.large_rows).nonzero(as_tuple=True)
            out[token, self.large_columns[entry]] += self.large_extra[entry]
        return out * self.column_values * self.row_values[indices][:, None]
