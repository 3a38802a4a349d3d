"""Storing trained blocks within the byte budget again."""

from __future__ import annotations

import os
from typing import Any

from quasitile.codec.block import CodedMatrix
from quasitile.codec.packing import pack
from quasitile.compress.allocate import in_threads
from quasitile.runtime import TiledMatrix, tiled_matrices

MARGIN_BITS = 0.002  # a weight
HALVINGS, NEAR_ENOUGH = 6, 5e-4  # tries to grow steps less than what fits, and the share of the bytes that may stay unused


def pack_within(model: Any, limit_bytes: int) -> float:
    """Pack all trainable matrices so that together they take no more than a number of bytes.

    Training moves coefficients and with them their entropy. Where they outgrow the budget, all
    steps grow by the smallest common factor with which they fit; where they do not, nothing is lost. The smallest,
    since training leaves many codes just beyond a rounding boundary: all those that a larger factor takes back at once
    cost more than the bytes that they save.

    Args:
        model: Its trainable matrices are packed in place.
        limit_bytes: For the payloads of all its matrices, trainable or not.

    Returns:
        The factor: 1 where the budget was kept anyway.
    """
    matrices = tiled_matrices(model)
    trainable = {name: matrix for name, matrix in matrices.items() if matrix.trainable}
    limit = limit_bytes - sum(m.payload.numel() for name, m in matrices.items() if name not in trainable)
    if not trainable:
        return 1.0
    num_weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in trainable.values())
    workers = len(os.sched_getaffinity(0))

    def packed(factor: float) -> tuple[int, list[CodedMatrix]]:
        def pack_one(matrix: TiledMatrix) -> tuple[int, CodedMatrix]:
            coded = matrix.coded(factor)
            return pack(coded).numel(), coded

        results = in_threads(pack_one, list(trainable.values()), workers, f"store {len(trainable)} matrices")
        return sum(size for size, _ in results), [coded for _, coded in results]

    factor, too_small = 1.0, 1.0
    size, coded = packed(factor)
    while size > limit:
        # A step twice as large saves at most a bit a weight; a little more, so that the next try fits.
        excess = 8 * (size - limit) / num_weights + MARGIN_BITS
        too_small = factor
        factor *= 2 ** min(2.0, 1.2 * excess)
        size, coded = packed(factor)
    slow = any(matrix.num_states > 1 for matrix in trainable.values())  # a path through a trellis is searched for each time
    for _ in range(HALVINGS if factor > 1 and not slow else 0):
        if size >= (1 - NEAR_ENOUGH) * limit:
            break
        between = (too_small * factor) ** 0.5
        tried, coded_between = packed(between)
        if tried > limit:
            too_small = between
        else:
            factor, size, coded = between, tried, coded_between
    for matrix, result in zip(trainable.values(), coded, strict=True):
        matrix.pack(result)
    return factor
