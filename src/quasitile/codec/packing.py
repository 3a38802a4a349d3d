"""A coded matrix as bytes and back (docs/format.md): one byte string holds everything of a matrix.

Codes are entropy-coded tile by tile with the asymmetric numeral system of the `constriction`
library; each component's left and right coefficients have a normal distribution of their own,
whose spread costs one byte.
"""

from __future__ import annotations

import struct

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quasitile.codec.block import Block, CodedMatrix, Tile, Tiling, from_symbols, symbols
from quasitile.codec.factors import MAX_CODE, rounded_normal_bits, spread_before_rounding
from quasitile.codec.spectrum import TRANSFORMS

HEADER = struct.Struct("<4sIIIIB3x")  # magic, M, N, number of tiles, number of components, transform
MAGIC = b"QT01"
SPREAD_OCTAVE, SPREAD_CENTRE = 8, 40
MAX_SIDE = 1 << 24


def spread_codes(codes: Tensor) -> Tensor:
    """One byte for the spread of the normal distribution behind each column of codes (rows x R)."""
    spread = spread_before_rounding(codes.double().square().mean(0).sqrt())
    return (spread.log2() * SPREAD_OCTAVE + SPREAD_CENTRE).round().clamp(0, 255).to(torch.uint8)


def spread_values(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The spreads that bytes stand for: `2^((code - 40) / 8)`."""
    return np.exp2((codes.astype(np.float64) - SPREAD_CENTRE) / SPREAD_OCTAVE)


def code_bits(codes: Tensor) -> float:
    """Entropy of a factor's codes (rows x R) under the distributions that `pack` gives them, in bits."""
    spread = spread_before_rounding(codes.double().square().mean(0).sqrt())
    return float(rounded_normal_bits(spread).sum()) * codes.shape[0]


def estimated_bytes(coded: CodedMatrix) -> float:
    """About what `pack` would take, from entropies; much faster than packing."""
    bits = 0.0
    for block in coded.blocks:
        for codes in (block.left, block.right):
            if codes.numel():
                bits += code_bits(codes)
    side = HEADER.size + sum(coded.tiling.shape) + 22 * len(coded.blocks) + 4 * sum(block.rank for block in coded.blocks)
    return bits / 8 + side + 4 * len(coded.blocks)


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
    family = constriction.stream.model.QuantizedGaussian(-MAX_CODE, MAX_CODE)
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
        coder.encode_reverse(row.to(torch.int32).numpy(), family, *_models(len(block.left), len(block.right), spread))
        streams.append(coder.get_compressed())
        spreads.append(spread)
    num_components = sum(block.rank for block in coded.blocks)
    tiles = np.array([[t.row_start, t.row_stop, t.column_start, t.column_stop] for t in coded.tiling.tiles], dtype="<u4")
    scales = torch.cat([block.scale for block in coded.blocks]).to(torch.bfloat16).view(torch.uint16).numpy()
    parts = [
        HEADER.pack(MAGIC, *coded.tiling.shape, len(coded.blocks), num_components, list(TRANSFORMS).index(coded.transform)),
        coded.row_scales.numpy().tobytes(),
        coded.column_scales.numpy().tobytes(),
        tiles.tobytes(),
        np.array([block.rank for block in coded.blocks], dtype="<u2").tobytes(),
        np.array([len(stream) for stream in streams], dtype="<u4").tobytes(),
        scales.astype("<u2").tobytes(),
        (np.concatenate(spreads, axis=1) if spreads else np.zeros((2, 0), np.uint8)).tobytes(),
        *(stream.astype("<u4").tobytes() for stream in streams),
    ]
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)


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


def unpack(payload: Tensor) -> CodedMatrix:
    """The coded matrix that `pack` wrote.

    Raises:
        ValueError: The bytes are not a coded matrix, or contradict themselves.
    """
    reader = _Reader(payload.cpu().numpy().tobytes())
    magic, num_rows, num_columns, num_tiles, num_components, transform = HEADER.unpack(reader.take(HEADER.size, "u1").tobytes())
    if magic != MAGIC:
        raise ValueError(f"it starts with {magic!r} instead of {MAGIC!r}")
    if transform >= len(TRANSFORMS) or max(num_rows, num_columns) > MAX_SIDE:
        raise ValueError(f"transform {transform} or shape {num_rows} x {num_columns} is out of range")
    row_scales, column_scales = reader.take(num_rows, "u1"), reader.take(num_columns, "u1")
    corners = reader.take(4 * num_tiles, "<u4").reshape(-1, 4).astype(np.int64)
    ranks = reader.take(num_tiles, "<u2").astype(np.int64)
    lengths = reader.take(num_tiles, "<u4").astype(np.int64)
    scales = torch.from_numpy(reader.take(num_components, "<u2").astype(np.uint16)).view(torch.bfloat16).float()
    spreads = reader.take(2 * num_components, "u1").reshape(2, -1)
    _check_geometry(corners, ranks, num_rows, num_columns, num_components)
    tiling = Tiling((num_rows, num_columns), tuple(Tile(*map(int, corner)) for corner in corners))
    family = constriction.stream.model.QuantizedGaussian(-MAX_CODE, MAX_CODE)
    blocks, first = [], 0
    for tile, rank, length in zip(tiling.tiles, ranks.tolist(), lengths.tolist(), strict=True):
        rows, columns = tile.shape
        words = reader.take(length, "<u4").astype(np.uint32)
        if rank:
            part = spreads[:, first : first + rank]
            row = constriction.stream.stack.AnsCoder(words).decode(family, *_models(rows, columns, part))
            left, right = from_symbols(torch.from_numpy(row).float(), rows, columns)
        else:
            left, right = torch.zeros(rows, 0), torch.zeros(columns, 0)
        blocks.append(Block(left, right, scales[first : first + rank].clone()))
        first += rank
    if reader.place != len(reader.data):
        raise ValueError(f"{len(reader.data) - reader.place} bytes follow its end")
    return CodedMatrix(
        tiling,
        blocks,
        list(TRANSFORMS)[transform],
        torch.from_numpy(row_scales.copy()),
        torch.from_numpy(column_scales.copy()),
    )


def _check_geometry(corners: NDArray, ranks: NDArray, num_rows: int, num_columns: int, num_components: int) -> None:
    """Tiles inside the matrix, as many indices as it has, ranks that fit."""
    heights, widths = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 2]
    inside = (heights > 0) & (widths > 0) & (corners[:, 1] <= num_rows) & (corners[:, 3] <= num_columns)
    if not inside.all() or int((heights * widths).sum()) != num_rows * num_columns:
        raise ValueError("its tiles do not cover the matrix")
    if (ranks > np.minimum(heights, widths)).any() or int(ranks.sum()) != num_components:
        raise ValueError("its ranks do not fit its tiles")
