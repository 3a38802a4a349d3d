"""A coded matrix as bytes and back (docs/format.md): one byte string holds everything of a matrix.

Codes are entropy-coded tile by tile. The factors' with the asymmetric numeral system of the
`constriction` library: each component's left and right coefficients have a normal distribution of
their own, whose spread costs one byte. For the residual see `entropy`.
"""

from __future__ import annotations

import zlib

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec import entropy
from quasitile.codec.axes import KLT, MAX_BASIS_CODE, SORTED, Axes, order_of_scales
from quasitile.codec.block import CodedMatrix, Tiling, symbols
from quasitile.codec.entropy import Statistics, encode_bytes, fit
from quasitile.codec.factors import MAX_CODE, spread_before_rounding
from quasitile.codec.machine import codes_of
from quasitile.codec.payload import (
    FACTORS,
    HEADER,
    MAGIC,
    MAGIC_WITH_AXES,
    NO_AXES,
    SHARED_AXES,
    SORTED_AXES,
    SPREAD_CENTRE,
    SPREAD_OCTAVE,
    STORED_AXES,
    check_bases,
    models,
)
from quasitile.codec.spectrum import TRANSFORMS
from quasitile.codec.stored import StoredMatrix


def spread_codes(codes: Tensor) -> Tensor:
    """One byte for the spread of the normal distribution behind each column of codes (rows x R)."""
    spread = spread_before_rounding(codes.double().square().mean(0).sqrt())
    return (spread.log2() * SPREAD_OCTAVE + SPREAD_CENTRE).round().clamp(0, 255).to(torch.uint8)


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


def pack(coded: CodedMatrix) -> Tensor:
    """All bytes of a matrix, as a uint8 tensor. Codes must be whole numbers.

    Raises:
        ValueError: A code is not a whole number, or too large, or tiles are too large for their transform.
    """
    has_residual = any(block.residual is not None for block in coded.blocks)
    used = {coded.transform} if any(block.rank for block in coded.blocks) else set()
    check_bases(coded.tiling, used | ({coded.residual_transform} if has_residual else set()))
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
        coder.encode_reverse(row.to(torch.int32).numpy(), FACTORS, *models(len(block.left), len(block.right), spread))
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


def unpack(payload: Tensor, shape: tuple[int, int] | None = None, shared: Axes | None = None) -> CodedMatrix:
    """The coded matrix that `pack` wrote.

    Args:
        payload: Its bytes.
        shape: What (M, N) must be, checked before anything of that size is made.
        shared: The axes that another matrix stores, for a matrix that refers to them.

    Raises:
        ValueError: The bytes are not a coded matrix, contradict themselves, or are of another shape.
    """
    return StoredMatrix(payload, shape, shared).unpacked()
