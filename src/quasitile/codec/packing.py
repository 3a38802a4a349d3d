"""A coded matrix as bytes and back (docs/format.md): one byte string holds everything of a matrix.

Codes are entropy-coded tile by tile. The factors' with the asymmetric numeral system of the
`constriction` library: each component's left and right coefficients have a normal distribution of
their own, whose spread costs one byte. For the residual see `entropy`.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec import entropy
from quasitile.codec.axes import KLT, MAX_BASIS_CODE, SORTED, Axes, order_of_scales
from quasitile.codec.block import Block, CodedMatrix, Tile, Tiling, from_symbols, symbols
from quasitile.codec.entropy import Statistics, decode_bytes, encode_bytes, fit
from quasitile.codec.factors import MAX_CODE, code_bits, spread_before_rounding
from quasitile.codec.machine import STATES, codes_of
from quasitile.codec.spectrum import TRANSFORMS

# magic, M, N, tiles, components, bytes of the tiling, transform, 1 + transform of the residual or 0, its states, axes, its step
HEADER = struct.Struct("<4sIIIIIBBBBd")
MAGIC, MAGIC_WITH_AXES = b"QT03", b"QT04"
NO_AXES = 0  # from 1 on, 1 + the number of a transform; from 255 down:
STORED_AXES, SHARED_AXES, SORTED_AXES = 255, 254, 253
STORED_BYTE_LIMIT = 256  # codes of a stored basis that a byte of payload may stand for, at most
SPREAD_OCTAVE, SPREAD_CENTRE = 8, 40
MAX_SIDE = 1 << 24
FACTORS = constriction.stream.model.QuantizedGaussian(-MAX_CODE, MAX_CODE)


def spread_codes(codes: Tensor) -> Tensor:
    """One byte for the spread of the normal distribution behind each column of codes (rows x R)."""
    spread = spread_before_rounding(codes.double().square().mean(0).sqrt())
    return (spread.log2() * SPREAD_OCTAVE + SPREAD_CENTRE).round().clamp(0, 255).to(torch.uint8)


def spread_values(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The spreads that bytes stand for: `2^((code - 40) / 8)`."""
    return np.exp2((codes.astype(np.float64) - SPREAD_CENTRE) / SPREAD_OCTAVE)


def estimated_bytes(coded: CodedMatrix) -> float:
    """About what `pack` would take, from entropies; faster than packing."""
    bits = sum(code_bits(codes) for block in coded.blocks for codes in (block.left, block.right) if codes.numel())
    residual = _residual(coded)
    if residual is not None:
        codes, quantisers, statistics = residual
        bits += entropy.code_bits(codes, quantisers, statistics)
        bits += 8 * len(encode_bytes(statistics.row_levels) + encode_bytes(statistics.column_levels))
    scales = len(encode_bytes(coded.row_scales.numpy()) + encode_bytes(coded.column_scales.numpy()))
    corners = len(zlib.compress(tile_corners(coded.tiling).tobytes(), 9))
    axes = sum(len(part) for part in _axes_parts(coded.axes))
    components = sum(block.rank for block in coded.blocks)
    return bits / 8 + HEADER.size + axes + scales + corners + 12 * len(coded.blocks) + 4 * components


def tile_corners(tiling: Tiling) -> NDArray[np.uint32]:
    """Row start, row stop, column start and column stop of every tile (T, 4)."""
    rows = [[t.row_start, t.row_stop, t.column_start, t.column_stop] for t in tiling.tiles]
    return np.array(rows, dtype="<u4").reshape(-1, 4)


def _residual(coded: CodedMatrix) -> tuple[NDArray[np.int32], NDArray[np.uint8], Statistics] | None:
    """Codes and quantisers (M, N) of the residual of the whole matrix and their statistics, or nothing.

    Raises:
        ValueError: Not every block has a residual of the same step, or a code is no whole number.
    """
    present = [block for block in coded.blocks if block.residual is not None]
    if not present:
        return None
    if len(present) < len(coded.blocks) or len({block.residual_step for block in present}) > 1:
        raise ValueError("all blocks of a matrix must have a residual of one step, or none")
    points = np.zeros(coded.tiling.shape, np.int64)
    codes, quantisers = np.zeros(points.shape, np.int32), np.zeros(points.shape, np.uint8)
    for tile, block in zip(coded.tiling.tiles, coded.blocks, strict=True):
        assert block.residual is not None
        exact = block.residual.double()
        if not torch.equal(exact, exact.round()) or float(exact.abs().max()) > entropy.MAX_ESCAPE:
            raise ValueError("the residual's codes must be whole numbers; round the block before packing")
        place = tile.rows, tile.columns
        points[place] = exact.numpy()
        codes[place], quantisers[place] = codes_of(points[place].astype(np.int32), coded.num_states)
    return codes, quantisers, fit(points, coded.num_states, quantisers)


def _models(rows: int, columns: int, spreads: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of every symbol of a tile, components one after another."""
    values = spread_values(spreads)
    deviations = np.concatenate([np.repeat(values[0], rows), np.repeat(values[1], columns)])
    return np.zeros_like(deviations), deviations


def pack(coded: CodedMatrix) -> Tensor:
    """All bytes of a matrix, as a uint8 tensor. Codes must be whole numbers.

    Raises:
        ValueError: A code is not a whole number, or too large.
    """
    streams, spreads = [], []
    for block in coded.blocks:
        if block.rank == 0:
            streams.append(np.zeros(0, dtype=np.uint32))
            continue
        row = symbols(block.left, block.right)
        if not torch.equal(row, row.round()) or float(row.abs().max()) > MAX_CODE:
            raise ValueError(f"codes must be whole numbers of at most {MAX_CODE}; round the block before packing")
        spread = torch.stack([spread_codes(block.left), spread_codes(block.right)]).numpy()
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(row.to(torch.int32).numpy(), FACTORS, *_models(len(block.left), len(block.right), spread))
        streams.append(coder.get_compressed())
        spreads.append(spread)
    num_components = sum(block.rank for block in coded.blocks)
    scales = torch.cat([block.scale for block in coded.blocks]).to(torch.bfloat16).view(torch.uint16).numpy()
    corners = zlib.compress(tile_corners(coded.tiling).tobytes(), 9)
    residual = _residual(coded)
    transforms = list(TRANSFORMS)
    kind = 1 + transforms.index(coded.residual_transform) if residual is not None else 0
    step = coded.blocks[0].residual_step if residual is not None else 0.0
    column_scales = coded.column_scales
    if coded.axes is not None and coded.axes.kind == SORTED:
        column_scales = column_scales[coded.axes.codes[0].argsort()]
        if not torch.equal(order_of_scales(column_scales), coded.axes.codes[0]):
            raise ValueError("the columns' order is not that of their scales; sort them before packing")
    parts = [
        HEADER.pack(
            MAGIC if coded.axes is None else MAGIC_WITH_AXES,
            *coded.tiling.shape,
            len(coded.blocks),
            num_components,
            len(corners),
            transforms.index(coded.transform),
            kind,
            coded.num_states if kind else 0,
            _axes_kind(coded.axes),
            step,
        ),
        encode_bytes(coded.row_scales.numpy()),
        encode_bytes(column_scales.numpy()),
        corners,
        np.array([block.rank for block in coded.blocks], dtype="<u2").tobytes(),
        np.array([len(stream) for stream in streams], dtype="<u4").tobytes(),
        scales.astype("<u2").tobytes(),
        (np.concatenate(spreads, axis=1) if spreads else np.zeros((2, 0), np.uint8)).tobytes(),
        *(stream.astype("<u4").tobytes() for stream in streams),
        *(_residual_parts(*residual, coded.tiling) if residual is not None else ()),
        *_axes_parts(coded.axes),
    ]
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)


def _residual_parts(codes: NDArray, quantisers: NDArray, statistics: Statistics, tiling: Tiling) -> list[bytes]:
    """The residual's bytes: shape, levels, sizes of the streams and of the lists of large codes, and both."""
    tiles = [
        entropy.encode_tile(
            codes[t.rows, t.columns], quantisers[t.rows, t.columns], statistics.levels(t.rows, t.columns), statistics.shape
        )
        for t in tiling.tiles
    ]
    return [
        bytes([statistics.shape]),
        encode_bytes(statistics.row_levels),
        encode_bytes(statistics.column_levels),
        np.array([len(words) for words, _ in tiles], dtype="<u4").tobytes(),
        np.array([len(escapes) for _, escapes in tiles], dtype="<u4").tobytes(),
        *(part for words, escapes in tiles for part in (words.astype("<u4").tobytes(), escapes.astype("<i4").tobytes())),
    ]


def _axes_kind(axes: Axes | None) -> int:
    if axes is None:
        return NO_AXES
    if axes.kind == SORTED:
        return SORTED_AXES
    if axes.kind == KLT:
        return SHARED_AXES if axes.shared else STORED_AXES
    return 1 + list(TRANSFORMS).index(axes.kind)


def _axes_parts(axes: Axes | None) -> list[bytes]:
    """The axes' bytes: number of bands, their widths, and the codes of stored ones; none for what is known without."""
    if axes is None or axes.shared or axes.kind == SORTED:
        return []
    widths = np.array([len(axes.widths), *axes.widths], dtype="<u4").tobytes()
    shifted = [(codes + MAX_BASIS_CODE + 1).to(torch.uint8).flatten().numpy() for codes in axes.codes]
    return [widths, *(encode_bytes(codes) for codes in shifted)]


class _Reader:
    """Takes arrays from a byte string, and never more than there is."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int, kind: str) -> NDArray:
        size = count * np.dtype(kind).itemsize
        if size > len(self.data) - self.place:
            raise ValueError(f"it ends at byte {len(self.data)} where {self.place + size} are declared")
        self.place += size
        return np.frombuffer(self.data, kind, count, self.place - size)

    def take_levels(self, count: int) -> NDArray[np.uint8]:
        """What `encode_bytes` wrote of so many values."""
        mean, spread = self.take(2, "u1").tolist()
        words = self.take(int(self.take(1, "<u4")[0]), "<u4").astype(np.uint32)
        return decode_bytes(mean, spread, words, count)


def unpack(payload: Tensor, shape: tuple[int, int] | None = None, shared: Axes | None = None) -> CodedMatrix:
    """The coded matrix that `pack` wrote.

    Args:
        payload: Its bytes.
        shape: What (M, N) must be, checked before anything of that size is made.
        shared: The axes that another matrix stores, for a matrix that refers to them.

    Raises:
        ValueError: The bytes are not a coded matrix, contradict themselves, or are of another shape.
    """
    reader = _Reader(payload.cpu().numpy().tobytes())
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
    row_scales, column_scales = reader.take_levels(num_rows), reader.take_levels(num_columns)
    corners = _inflate(reader.take(corner_bytes, "u1").tobytes(), num_tiles)
    ranks = reader.take(num_tiles, "<u2").astype(np.int64)
    lengths = reader.take(num_tiles, "<u4").astype(np.int64)
    scales = torch.from_numpy(reader.take(num_components, "<u2").astype(np.uint16)).view(torch.bfloat16).float()
    spreads = reader.take(2 * num_components, "u1").reshape(2, -1)
    _check_geometry(corners, ranks, num_rows, num_columns, num_components)
    tiling = Tiling((num_rows, num_columns), tuple(Tile(*map(int, corner)) for corner in corners))
    blocks, first = [], 0
    for tile, rank, length in zip(tiling.tiles, ranks.tolist(), lengths.tolist(), strict=True):
        rows, columns = tile.shape
        words = reader.take(length, "<u4").astype(np.uint32)
        if rank:
            part = spreads[:, first : first + rank]
            row = constriction.stream.stack.AnsCoder(words).decode(FACTORS, *_models(rows, columns, part))
            left, right = from_symbols(torch.from_numpy(row).float(), rows, columns)
        else:
            left, right = torch.zeros(rows, 0), torch.zeros(columns, 0)
        blocks.append(Block(left, right, scales[first : first + rank].clone()))
        first += rank
    if kind:
        _read_residual(reader, tiling, blocks, step, num_states)
    axes = None
    if axes_kind == SORTED_AXES:
        order = order_of_scales(torch.from_numpy(column_scales))
        axes, column_scales = Axes(SORTED, (num_columns,), (order,)), column_scales[order.numpy()]
    elif axes_kind != NO_AXES:
        axes = _read_axes(reader, num_columns, axes_kind, shared)
    if reader.place != len(reader.data):
        raise ValueError(f"{len(reader.data) - reader.place} bytes follow its end")
    names = list(TRANSFORMS)
    return CodedMatrix(
        tiling,
        blocks,
        names[transform],
        torch.from_numpy(row_scales),
        torch.from_numpy(column_scales),
        names[kind - 1] if kind else "identity",
        num_states if kind else 1,
        axes=axes,
    )


def _read_residual(reader: _Reader, tiling: Tiling, blocks: list[Block], step: float, num_states: int) -> None:
    """Give every block its residual."""
    shape = int(reader.take(1, "u1")[0])
    if shape >= entropy.NUM_SHAPES:
        raise ValueError(f"its residual has a distribution of shape {shape}, the largest known is {entropy.NUM_SHAPES - 1}")
    statistics = Statistics(reader.take_levels(tiling.shape[0]), reader.take_levels(tiling.shape[1]), shape)
    lengths, counts = reader.take(len(blocks), "<u4"), reader.take(len(blocks), "<u4")
    for tile, block, length, count in zip(tiling.tiles, blocks, lengths.tolist(), counts.tolist(), strict=True):
        words, escapes = reader.take(length, "<u4").astype(np.uint32), reader.take(count, "<i4").astype(np.int32)
        levels = statistics.levels(tile.rows, tile.columns)
        points = entropy.decode_tile(words, escapes, levels, shape, num_states)
        block.residual, block.residual_step = torch.from_numpy(points).float(), step


def _read_axes(reader: _Reader, num_columns: int, kind: int, shared: Axes | None) -> Axes:
    """The axes that `_axes_parts` wrote, or that another matrix stores."""
    if kind == SHARED_AXES:
        if shared is None or sum(shared.widths) != num_columns:
            raise ValueError(f"it refers to stored axes of {num_columns} columns, and there are none")
        return replace(shared, shared=True)
    widths = tuple(reader.take(int(reader.take(1, "<u4")[0]), "<u4").tolist())
    if sum(widths) != num_columns or 0 in widths:
        raise ValueError(f"its axes stand for {sum(widths)} columns instead of {num_columns}")
    if kind != STORED_AXES:
        return Axes(list(TRANSFORMS)[kind - 1], widths)
    codes = []
    for width in widths:
        if width * width > STORED_BYTE_LIMIT * len(reader.data):
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
    if len(raw) != 16 * num_tiles:
        raise ValueError(f"its tiling does not hold the {num_tiles} tiles that are declared")
    return np.frombuffer(raw, "<u4").reshape(-1, 4).astype(np.int64)


def _check_geometry(corners: NDArray, ranks: NDArray, num_rows: int, num_columns: int, num_components: int) -> None:
    """Tiles inside the matrix, as many indices as it has, ranks that fit."""
    heights, widths = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 2]
    inside = (heights > 0) & (widths > 0) & (corners[:, 1] <= num_rows) & (corners[:, 3] <= num_columns)
    if not inside.all() or int((heights * widths).sum()) != num_rows * num_columns:
        raise ValueError("its tiles do not cover the matrix")
    if (ranks > np.minimum(heights, widths)).any() or int(ranks.sum()) != num_components:
        raise ValueError("its ranks do not fit its tiles")
