"""The bytes of a plainly coded matrix, from points that come some rows at a time and may lie in a file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec import entropy
from quasitile.codec.block import Tile, Tiling
from quasitile.codec.entropy import MAX_ESCAPE, Statistics, chosen, clip_at, encode_bytes, encode_tile
from quasitile.codec.machine import codes_of, points_of
from quasitile.codec.matrix import row_bands
from quasitile.codec.packing import tile_corners
from quasitile.codec.payload import HEADER, MAGIC, NO_AXES
from quasitile.codec.spectrum import TRANSFORMS

IN_MEMORY_BYTES = 1 << 26
SAMPLE = 1 << 13
BYTES_OF_TILE = 17  # rank, three lengths, half a word lost at its end


def codes_and_quantisers(points: Tensor, tiles: Iterable[Tile], num_states: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Codes and quantisers (R, N) of points, tile by tile (see `machine.codes_of`)."""
    if float(points.abs().max()) > MAX_ESCAPE:
        raise ValueError(f"codes must be at most {MAX_ESCAPE}; this step is too small")
    values = np.ascontiguousarray(points.numpy().astype(np.int32))
    codes, quantisers = np.zeros_like(values), np.zeros(values.shape, np.uint8)
    for tile in tiles:
        place = tile.rows, tile.columns
        codes[place], quantisers[place] = codes_of(values[place], num_states)
    return codes, quantisers


class CodeStore:
    """The codes of a matrix (M, N), written in bands of rows from the first to the last.

    Args:
        shape: (M, N).
        num_states: Of the trellis.
        folder: Where they lie if they are many.
    """

    def __init__(self, shape: tuple[int, int], num_states: int = 1, folder: Path | None = None) -> None:
        self.shape, self.num_states = shape, num_states
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(folder) if folder else None)  # noqa: SIM115
        self._bands: list[tuple[int, int, np.dtype, int]] = []
        self._rows = 0
        self.num_kept, self._sizes = 0, 0.0

    def __enter__(self) -> CodeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, points: Tensor, tiles: Iterable[Tile]) -> None:
        """The next rows (R, N) of points, and their tiles, counted from the first of these rows."""
        codes, quantisers = codes_and_quantisers(points, tiles, self.num_states)
        self._sizes += float(points.abs().sum(dtype=points.double().dtype)) / (1 if self.num_states == 1 else 2)
        self.num_kept += int(np.count_nonzero(codes))
        kind = np.dtype(np.int16 if int(np.abs(codes).max()) < 2**15 else np.int32)
        self._bands.append((self._rows, len(codes), kind, self._file.tell()))
        self._file.write(np.ascontiguousarray(codes.astype(kind)).data)
        self._file.write(quantisers.data)
        self._rows += len(codes)

    def bands(self) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.uint8]]]:
        """First row, codes and quantisers (R, N) of what was written together."""
        width = self.shape[1]
        for start, count, kind, place in self._bands:
            self._file.seek(place)
            codes = np.frombuffer(self._file.read(count * width * kind.itemsize), kind).reshape(count, width)
            quantisers = np.frombuffer(self._file.read(count * width), np.uint8).reshape(count, width)
            yield start, codes.astype(np.int32), quantisers

    def fit(self) -> Statistics:
        """See `entropy.fit`."""
        size, width = self.shape[0] * self.shape[1], self.shape[1]
        clip = clip_at(self._sizes / size)
        stride = max(1, size // SAMPLE) | 1
        rows, columns = np.empty(self.shape[0]), np.zeros(width)
        picked: list[tuple[NDArray, ...]] = []
        for start, codes, quantisers in self.bands():
            sizes = np.abs(points_of(codes, quantisers, self.num_states)).astype(np.float32)
            if self.num_states > 1:
                sizes /= 2
            power = np.square(np.minimum(sizes, np.float32(clip)))
            rows[start : start + len(codes)] = power.mean(1, dtype=np.float64)
            columns += power.sum(0, dtype=np.float64)
            first = -(-start * width // stride) * stride
            row, column = np.divmod(np.arange(first, (start + len(codes)) * width, stride), width)
            picked.append((row, column, sizes[row - start, column], quantisers[row - start, column]))
        row, column, sizes, quantisers = (np.concatenate(parts) for parts in zip(*picked, strict=True))
        return chosen(rows, columns / self.shape[0], row, column, sizes, quantisers, self.num_states)


def grouped_bands(tiling: Tiling, num_rows: int) -> Iterator[tuple[slice, list[Tile]]]:
    """Rows of row bands of a tiling taken together until they are about so many, and their tiles."""
    group: list[Tile] = []
    for band in row_bands(tiling):
        group += band
        if band[0].row_stop - group[0].row_start >= num_rows:
            yield slice(group[0].row_start, band[0].row_stop), group
            group = []
    if group:
        yield slice(group[0].row_start, group[-1].row_stop), group


def pack_plain(
    store: CodeStore, tiling: Tiling, row_codes: Tensor, column_codes: Tensor, transform: str, unit: float, out: IO[bytes]
) -> None:
    """Write what `packing.pack` would (docs/format.md).

    Args:
        store: The codes, appended in whole row bands of the tiling.
        tiling: Its tiles.
        row_codes: (M,) uint8.
        column_codes: (N,) uint8.
        transform: Of the factors that are not there.
        unit: What a point is worth.
        out: Where the bytes go.
    """
    statistics = store.fit()
    num_tiles = len(tiling.tiles)
    order = {tile: place for place, tile in enumerate(tiling.tiles)}
    lengths, counts = np.zeros(num_tiles, "<u4"), np.zeros(num_tiles, "<u4")
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as body:
        bands = iter(row_bands(tiling))
        for start, codes, quantisers in store.bands():
            first, stop = start, start + len(codes)
            while first < stop:
                band = next(bands)
                for tile in band:
                    place = slice(tile.row_start - start, tile.row_stop - start), tile.columns
                    levels = statistics.levels(tile.rows, tile.columns)
                    words, escapes = encode_tile(codes[place], quantisers[place], levels, statistics.shape)
                    lengths[order[tile]], counts[order[tile]] = len(words), len(escapes)
                    body.write(words.astype("<u4").tobytes() + escapes.astype("<i4").tobytes())
                first = band[0].row_stop
        corners = zlib.compress(tile_corners(tiling).tobytes(), 9)
        names = list(TRANSFORMS)
        kinds = names.index(transform), 1 + names.index("identity"), store.num_states
        out.write(HEADER.pack(MAGIC, *tiling.shape, num_tiles, 0, len(corners), *kinds, NO_AXES, unit))
        out.write(encode_bytes(row_codes.numpy()) + encode_bytes(column_codes.numpy()) + corners)
        out.write(bytes(2 * num_tiles) + bytes(4 * num_tiles))
        out.write(bytes([statistics.shape]) + encode_bytes(statistics.row_levels) + encode_bytes(statistics.column_levels))
        out.write(lengths.tobytes() + counts.tobytes())
        body.seek(0)
        while part := body.read(1 << 22):
            out.write(part)


def sampled_bytes(
    points: Tensor,
    tiles: Iterable[Tile],
    num_states: int,
    shape: tuple[int, int],
    num_tiles: int,
    scales: tuple[Tensor, Tensor],
) -> float:
    """About what `pack_plain` writes for a matrix of which some rows were coded.

    Args:
        points: (R, N) of these rows.
        tiles: Of these rows.
        num_states: Of the trellis.
        shape: (M, N).
        num_tiles: Of its tiling.
        scales: Row and column codes of the whole matrix.
    """
    codes, quantisers = codes_and_quantisers(points, tiles, num_states)
    statistics = entropy.fit(points.numpy().astype(np.int64), num_states, quantisers)
    share = shape[0] / len(codes)
    levels = share * len(encode_bytes(statistics.row_levels)) + len(encode_bytes(statistics.column_levels))
    known = sum(len(encode_bytes(scale.numpy())) for scale in scales)
    return (
        share * entropy.code_bits(codes, quantisers, statistics) / 8 + levels + known + BYTES_OF_TILE * num_tiles + HEADER.size
    )
