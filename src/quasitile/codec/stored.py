"""A stored matrix opened: its header is read and checked at once, its tiles are decoded when they are asked for.

Nothing that the bytes declare is believed before it is checked: sizes against the bytes that are
there, the shape against what the caller expects, tiles against the shape (docs/format.md).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from functools import cached_property

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec import entropy
from quasitile.codec.axes import KLT, MAX_BASIS_CODE, SORTED, Axes, order_of_scales
from quasitile.codec.block import Block, CodedMatrix, Tile, Tiling, from_symbols
from quasitile.codec.dequantise import DTYPES, dequantise
from quasitile.codec.entropy import Statistics, decode_bytes
from quasitile.codec.factors import scale_values
from quasitile.codec.gaussian import decode_components
from quasitile.codec.machine import STATES
from quasitile.codec.matrix import decode_tile
from quasitile.codec.payload import (
    FACTORS,
    HEADER,
    MAGIC,
    MAGIC_WITH_AXES,
    MAX_SIDE,
    MAX_STORED_WIDTH,
    NO_AXES,
    SHARED_AXES,
    SORTED_AXES,
    STORED_AXES,
    STORED_BYTE_LIMIT,
    check_bases,
    models,
    spread_values,
)
from quasitile.codec.spectrum import TRANSFORMS, basis


class Reader:
    """Takes arrays from bytes, and never more than there are."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.place = data, 0

    def skip(self, size: int) -> int:
        """Pass over bytes that must be there; the place where they begin."""
        if size > len(self.data) - self.place:
            raise ValueError(f"it ends at byte {len(self.data)} where {self.place + size} are declared")
        self.place += size
        return self.place - size

    def take(self, count: int, kind: str) -> NDArray:
        """So many numbers."""
        return np.frombuffer(self.data, kind, count, self.skip(count * np.dtype(kind).itemsize))

    def take_levels(self, count: int) -> NDArray[np.uint8]:
        """What `encode_bytes` wrote of so many values."""
        mean, spread = self.take(2, "u1").tolist()
        words = self.take(int(self.take(1, "<u4")[0]), "<u4").astype(np.uint32)
        return decode_bytes(mean, spread, words, count)


class StoredMatrix:
    """The bytes that `pack` wrote.

    Args:
        payload: They; must not change while this is used.
        shape: What (M, N) must be, checked before anything of that size is made.
        shared: The axes that another matrix stores, for a matrix that refers to them.

    Attributes:
        tiling: Row band after row band, each from left to right.
        transform: Of the factors.
        residual_transform: Of the residual, or nothing without one.
        num_states: Of its trellis.
        step: What one unit of it is worth.
        row_scales: (M,) uint8.
        column_scales: (N,) uint8, in the order of the tiled columns.
        axes: See `CodedMatrix`.
        ranks: (T,).

    Raises:
        ValueError: The bytes are not a coded matrix, contradict themselves, or are of another shape.
    """

    def __init__(self, payload: Tensor, shape: tuple[int, int] | None = None, shared: Axes | None = None) -> None:
        reader = self._reader = Reader(payload.cpu().contiguous().numpy())
        header = HEADER.unpack(reader.take(HEADER.size, "u1").tobytes())
        magic, num_rows, num_columns, num_tiles, num_components, corner_bytes, *kinds, step = header
        transform, kind, num_states, axes_kind = kinds
        if magic not in (MAGIC, MAGIC_WITH_AXES):
            raise ValueError(f"it starts with {magic!r} instead of {MAGIC!r}")
        if (magic == MAGIC) != (axes_kind == NO_AXES) or len(TRANSFORMS) < axes_kind < SORTED_AXES:
            raise ValueError(f"its axes are of kind {axes_kind}, which is out of range")
        if transform >= len(TRANSFORMS) or kind > len(TRANSFORMS) or max(num_rows, num_columns) > MAX_SIDE:
            raise ValueError(f"transform {transform}, residual {kind} or shape {num_rows} x {num_columns} is out of range")
        if shape is not None and (num_rows, num_columns) != shape:
            raise ValueError(f"the stored matrix is {num_rows} x {num_columns}, expected {shape[0]} x {shape[1]}")
        if kind and (not 0 < step < math.inf or num_states not in STATES):
            raise ValueError(f"its residual has a step of {step} and a trellis of {num_states} states")
        names = list(TRANSFORMS)
        self.transform, self.residual_transform = names[transform], names[kind - 1] if kind else None
        self.num_states, self.step = (num_states if kind else 1), step
        row_scales, column_scales = reader.take_levels(num_rows), reader.take_levels(num_columns)
        corners = _inflate(reader.take(corner_bytes, "u1").tobytes(), num_tiles)
        self.ranks = reader.take(num_tiles, "<u2").astype(np.int64)
        lengths = reader.take(num_tiles, "<u4").astype(np.int64)
        scales = torch.from_numpy(reader.take(num_components, "<u2").astype(np.uint16)).view(torch.bfloat16).float()
        self._spreads = reader.take(2 * num_components, "u1").reshape(2, -1)
        _check_geometry(corners, self.ranks, num_rows, num_columns, num_components)
        if not bool(torch.isfinite(scales).all()):
            raise ValueError("the scale of a component is no finite number")
        if lengths[self.ranks == 0].any():
            raise ValueError("a tile without components has a stream")
        self._scales, self._components = scales, np.concatenate([[0], self.ranks.cumsum()])
        self.tiling = Tiling((num_rows, num_columns), tuple(Tile(*corner) for corner in corners.tolist()))
        used = {self.transform} if num_components else set()
        check_bases(self.tiling, used | ({self.residual_transform} if self.residual_transform is not None else set()))
        self._corners = corners
        self._factor_words = _places(reader.skip(4 * int(lengths.sum())), 4 * lengths)
        self._statistics: Statistics | None = None
        if kind:
            self._open_residual(reader, num_rows, num_columns, num_tiles)
        self.row_scales, self.column_scales = torch.from_numpy(row_scales), torch.from_numpy(column_scales)
        self.axes: Axes | None = None
        if axes_kind == SORTED_AXES:
            order = order_of_scales(self.column_scales)
            self.axes, self.column_scales = Axes(SORTED, (num_columns,), (order,)), self.column_scales[order]
        elif axes_kind != NO_AXES:
            self.axes = _read_axes(reader, num_columns, axes_kind, shared)
        if reader.place != len(reader.data):
            raise ValueError(f"{len(reader.data) - reader.place} bytes follow its end")

    def _open_residual(self, reader: Reader, num_rows: int, num_columns: int, num_tiles: int) -> None:
        shape = int(reader.take(1, "u1")[0])
        if shape >= entropy.NUM_SHAPES:
            raise ValueError(f"its residual has a distribution of shape {shape}, the largest known is {entropy.NUM_SHAPES - 1}")
        self._statistics = Statistics(reader.take_levels(num_rows), reader.take_levels(num_columns), shape, self.num_states)
        self._lengths = reader.take(num_tiles, "<u4").astype(np.int64)
        self._counts = reader.take(num_tiles, "<u4").astype(np.int64)
        sizes = 4 * (self._lengths + self._counts)
        self._residual_words = _places(reader.skip(int(sizes.sum())), sizes)

    @cached_property
    def bands(self) -> list[tuple[int, int]]:
        """First tile and tile after the last of every row band."""
        first = np.flatnonzero(self._corners[:, 2] == 0).tolist()
        return list(zip(first, [*first[1:], len(self.tiling.tiles)], strict=True))

    def blocks(self, first: int, stop: int) -> list[Block]:
        """The rank blocks of the tiles from `first` to `stop`, without their residuals."""
        tiles, ranks = self.tiling.tiles[first:stop], self.ranks[first:stop]
        shapes = np.array([tile.shape for tile in tiles], np.int64).reshape(-1, 2)
        component, last = int(self._components[first]), int(self._components[stop])
        data = self._reader.data[self._factor_words[first] : self._factor_words[stop]]
        stream = np.frombuffer(data, "<u4").astype(np.uint32)
        lengths = np.diff(self._factor_words[first : stop + 1]) // 4
        row = decode_components(stream, lengths, shapes, ranks, spread_values(self._spreads[:, component:last]))
        if row is None:
            row = self._by_library(stream, lengths, shapes, ranks, component)
        found, place, symbols = [], 0, torch.from_numpy(row)
        for (rows, columns), rank in zip(shapes.tolist(), ranks.tolist(), strict=True):
            size = rank * (rows + columns)
            sides = from_symbols(symbols[place : place + size], rows, columns)
            found.append(Block(*sides, self._scales[component : component + rank].clone()))
            place, component = place + size, component + rank
        return found

    def _by_library(
        self,
        stream: NDArray[np.uint32],
        lengths: NDArray[np.int64],
        shapes: NDArray[np.int64],
        ranks: NDArray[np.int64],
        component: int,
    ) -> NDArray[np.float32]:
        """What `decode_components` gives, slowly, for any stream."""
        rows, place = [], 0
        for length, (height, width), rank in zip(lengths.tolist(), shapes.tolist(), ranks.tolist(), strict=True):
            words = stream[place : place + length]
            place += length
            if not rank:
                continue
            coder = constriction.stream.stack.AnsCoder(words)
            rows.append(coder.decode(FACTORS, *models(height, width, self._spreads[:, component : component + rank])))
            component += rank
            if not coder.is_empty():
                raise ValueError("the stream of a tile's factors does not end where it should")
        return np.concatenate([np.zeros(0, np.float32), *rows]).astype(np.float32)

    def points(self, first: int, stop: int) -> NDArray[np.int32]:
        """Points of the residual of whole row bands (R, N): tiles from `first` to `stop`, without the interpreter's lock."""
        assert self._statistics is not None
        top, bottom = int(self._corners[first, 0]), int(self._corners[stop - 1, 1])
        data = self._reader.data[self._residual_words[first] : self._residual_words[stop]]
        return entropy.decode_tiles(
            np.frombuffer(data, "<u4").astype(np.uint32),
            self._lengths[first:stop],
            self._counts[first:stop],
            self._corners[first:stop] - np.array([top, top, 0, 0]),
            replace(self._statistics, row_levels=self._statistics.row_levels[top:bottom]),
        )

    def tiled_rows(self, first: int, stop: int) -> Tensor:
        """Rows (R, N) of the tiled matrix, float32: the whole row bands of the tiles from `first` to `stop`."""
        tiles = self.tiling.tiles[first:stop]
        top = tiles[0].row_start
        if self.residual_transform is None:
            rows = torch.zeros(tiles[-1].row_stop - top, self.tiling.shape[1])
        else:
            rows = torch.from_numpy(self.points(first, stop)).float()
            if self.residual_transform == "identity":
                rows *= self.step
                if not self.ranks[first:stop].any():
                    return rows
        for tile, block in zip(tiles, self.blocks(first, stop), strict=True):
            place = slice(tile.row_start - top, tile.row_stop - top), tile.columns
            if self.residual_transform not in (None, "identity"):
                down, across = (basis(self.residual_transform, size) for size in tile.shape)
                rows[place] = down.T @ rows[place].contiguous() @ across * self.step
            if block.rank:
                factors = decode_tile(block, self.transform, "identity")
                rows[place] = factors if self.residual_transform is None else factors + rows[place]
        return rows

    def rows(self, first: int, stop: int) -> Tensor:
        """Rows (R, N) of the stored matrix, float32: scales and axes undone."""
        top, bottom = self.tiling.tiles[first].row_start, self.tiling.tiles[stop - 1].row_stop
        rows = self.tiled_rows(first, stop)
        rows /= scale_values(self.row_scales[top:bottom])[:, None]
        rows /= scale_values(self.column_scales)
        return rows if self.axes is None else self.axes.entries(rows)

    def plain(self, first: int, stop: int) -> bool:
        """Whether rows are points of a residual and scales alone, perhaps in sorted columns."""
        sorted_at_most = self.axes is None or self.axes.kind == SORTED
        return self.residual_transform == "identity" and sorted_at_most and not self.ranks[first:stop].any()

    def scales(self, first: int, stop: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scales of the rows and of the tiled columns, float32, and the column that each of these becomes."""
        top, bottom = self.tiling.tiles[first].row_start, self.tiling.tiles[stop - 1].row_stop
        order = self.axes.codes[0] if self.axes is not None and self.axes.kind == SORTED else None
        return scale_values(self.row_scales[top:bottom]), scale_values(self.column_scales), order

    def write_rows(self, first: int, stop: int, out: Tensor) -> None:
        """Put what `rows` gives, rounded to the dtype of `out` (R, N), into it.

        Raises:
            ValueError: A weight is infinite or NaN in float32.
        """
        if self.plain(first, stop) and out.dtype in DTYPES and not out.is_cuda:
            finite = dequantise(self.points(first, stop), self.step, *self.scales(first, stop), out)
        else:
            rows = self.rows(first, stop)
            finite = bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all())
            out.copy_(rows)
        if not finite:
            raise ValueError("it holds weights that are not finite")

    def unpacked(self) -> CodedMatrix:
        """Everything at once."""
        blocks = self.blocks(0, len(self.tiling.tiles))
        if self._statistics is not None:
            for first, stop in self.bands:
                points = self.points(first, stop)
                top = self.tiling.tiles[first].row_start
                for index in range(first, stop):
                    tile = self.tiling.tiles[index]
                    inner = points[tile.row_start - top : tile.row_stop - top, tile.columns]
                    blocks[index].residual = torch.from_numpy(np.ascontiguousarray(inner)).float()
                    blocks[index].residual_step = self.step
        scales = self.row_scales, self.column_scales
        residual = self.residual_transform or "identity"
        return CodedMatrix(self.tiling, blocks, self.transform, *scales, residual, self.num_states, axes=self.axes)


def _places(start: int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several byte ranges begins that follow one another, and where the last ends."""
    return start + np.concatenate([[0], sizes.cumsum()])


def _read_axes(reader: Reader, num_columns: int, kind: int, shared: Axes | None) -> Axes:
    """The axes that were written, or that another matrix stores."""
    if kind == SHARED_AXES:
        if shared is None or sum(shared.widths) != num_columns:
            raise ValueError(f"it refers to stored axes of {num_columns} columns, and there are none")
        return replace(shared, shared=True)
    widths = tuple(reader.take(int(reader.take(1, "<u4")[0]), "<u4").tolist())
    if sum(widths) != num_columns or 0 in widths:
        raise ValueError(f"its axes stand for {sum(widths)} columns instead of {num_columns}")
    if kind != STORED_AXES:
        name = list(TRANSFORMS)[kind - 1]
        if sum(width * width for width in set(widths)) > max(1 << 22, MAX_STORED_WIDTH * num_columns):
            raise ValueError(f"its axes are {max(widths)} wide, which is too much for the transform {name}")
        return Axes(name, widths)
    codes = []
    for width in widths:
        if width * width > STORED_BYTE_LIMIT * len(reader.data) or width > MAX_STORED_WIDTH:
            raise ValueError(f"its axes are {width} x {width} in {len(reader.data)} bytes")
        values = torch.from_numpy(reader.take_levels(width * width)).view(width, width)
        codes.append(values.double() - (MAX_BASIS_CODE + 1))
    axes = Axes(KLT, widths, tuple(codes))
    axes.matrices()  # refuses what is no basis
    return axes


def _inflate(data: bytes, num_tiles: int) -> NDArray[np.int64]:
    """Corners (T, 4) of so many tiles; never more memory than they need."""
    decompressor = zlib.decompressobj()
    try:
        raw = decompressor.decompress(data, min(16 * num_tiles + 1, 1100 * len(data) + 1))
    except zlib.error as error:
        raise ValueError(f"its tiling is damaged ({error})") from error
    if len(raw) != 16 * num_tiles or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"its tiling does not hold the {num_tiles} tiles that are declared")
    return np.frombuffer(raw, "<u4").reshape(-1, 4).astype(np.int64)


def _check_geometry(corners: NDArray, ranks: NDArray, num_rows: int, num_columns: int, num_components: int) -> None:
    """Tiles in row bands, each from the left edge to the right, bands from the top to the bottom; ranks that fit."""
    top, bottom, left, right = corners.T
    begins = left == 0
    band = np.maximum(begins.cumsum() - 1, 0)
    tops = top[begins]
    whole = (
        len(corners) > 0
        and bool(begins[0])
        and bool((top < bottom).all() and (left < right).all())
        and bool((top == tops[band]).all() and (bottom == bottom[begins][band]).all())
        and bool((left[1:] == np.where(begins[1:], 0, right[:-1])).all())
        and bool((right[:-1][begins[1:]] == num_columns).all() and right[-1] == num_columns)
        and bool(tops[0] == 0 and (tops[1:] == bottom[begins][:-1]).all() and bottom[-1] == num_rows)
    )
    if not whole:
        raise ValueError("its tiles do not cover the matrix")
    heights, widths = bottom - top, right - left
    if (ranks > np.minimum(heights, widths)).any() or int(ranks.sum()) != num_components:
        raise ValueError("its ranks do not fit its tiles")
