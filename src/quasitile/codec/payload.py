"""The layout of a stored matrix (docs/format.md): what the writer (`packing`) and the reader (`stored`) share."""

from __future__ import annotations

import math
import struct

import constriction
import numpy as np
from numpy.typing import NDArray

from quasitile.codec.block import Tiling
from quasitile.codec.factors import MAX_CODE

# magic, M, N, tiles, components, bytes of the tiling, transform, 1 + transform of the residual or 0, its states, axes, its step
HEADER = struct.Struct("<4sIIIIIBBBBd")
MAGIC, MAGIC_WITH_AXES = b"QT03", b"QT04"
NO_AXES = 0  # from 1 on, 1 + the number of a transform; from 255 down:
STORED_AXES, SHARED_AXES, SORTED_AXES = 255, 254, 253
SPREAD_OCTAVE, SPREAD_CENTRE = 8, 40
FACTORS = constriction.stream.model.QuantizedGaussian(-MAX_CODE, MAX_CODE)
# What a reader is ready to compute, whatever a file declares:
MAX_SIDE = 1 << 24  # rows or columns
STORED_BYTE_LIMIT = 256  # codes of a stored basis that a byte of payload may stand for
MAX_STORED_WIDTH = 8192  # of a stored basis, which costs a singular value decomposition
FREE_BASIS_NUMBERS = 1 << 22  # of the bases of a matrix' transforms together, or
BASIS_NUMBERS_A_WEIGHT = 8  # so many times the numbers of the matrix, where that is more


def spread_values(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The spreads that bytes stand for: `2^((code - 40) / 8)`."""
    return np.exp2((codes.astype(np.float64) - SPREAD_CENTRE) / SPREAD_OCTAVE)


def models(rows: int, columns: int, spreads: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of every symbol of a tile, components one after another."""
    values = spread_values(spreads)
    deviations = np.concatenate([np.repeat(values[0], rows), np.repeat(values[1], columns)])
    return np.zeros_like(deviations), deviations


def check_bases(tiling: Tiling, transforms: set[str]) -> None:
    """Refuse transforms whose bases would be much larger than the matrix.

    Args:
        tiling: Of the matrix.
        transforms: Those that are used; `identity` costs nothing.

    Raises:
        ValueError: The bases of all tile sides together are too large.
    """
    if not transforms - {"identity"}:
        return
    sides = {side for tile in tiling.tiles for side in tile.shape}
    numbers = sum(side * side for side in sides) * len(transforms - {"identity"})
    if numbers > max(FREE_BASIS_NUMBERS, BASIS_NUMBERS_A_WEIGHT * math.prod(tiling.shape)):
        names = ", ".join(sorted(transforms - {"identity"}))
        raise ValueError(
            f"its tiles are too large for the transform {names}: a side of {max(sides)}; use smaller tiles or identity"
        )
