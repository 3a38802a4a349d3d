"""Storing trained blocks within the byte budget again."""

from __future__ import annotations

from typing import Any

from quasitile.codec.block import CodedMatrix
from quasitile.codec.packing import pack
from quasitile.runtime import tiled_matrices


def pack_within(model: Any, limit_bytes: int) -> float:
    """Pack all trainable matrices so that together they take no more than a number of bytes.

    Training moves coefficients and with them their entropy. Where they outgrow the budget, all
    steps grow by one common factor, found by bisection; where they do not, nothing is lost.

    Args:
        model: Its trainable matrices are packed in place.
        limit_bytes: For the payloads of all its matrices, trainable or not.

    Returns:
        The factor: 1 where the budget was kept anyway.
    """
    matrices = tiled_matrices(model)
    trainable = {name: matrix for name, matrix in matrices.items() if matrix.trainable}
    limit = limit_bytes - sum(m.payload.numel() for name, m in matrices.items() if name not in trainable)

    def packed(factor: float) -> tuple[int, dict[str, CodedMatrix]]:
        coded = {name: matrix.coded(factor) for name, matrix in trainable.items()}
        return sum(pack(c).numel() for c in coded.values()), coded

    factor = 1.0
    size, coded = packed(factor)
    low, high = 1.0, 1.05
    while size > limit and trainable:
        low, factor, high = factor, high, high * 1.3
        size, coded = packed(factor)
    if factor > 1:
        for _ in range(5):
            middle = (low + factor) / 2
            size, tried = packed(middle)
            if size > limit:
                low = middle
            else:
                factor, coded = middle, tried
    for name, matrix in trainable.items():
        matrix.pack(coded[name])
    return factor
