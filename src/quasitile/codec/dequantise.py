"""Points of a residual to weights, scales undone, in one pass over rows that fit into the processor's cache."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

LARGEST_BITS = 0x7F800000  # of the magnitude of a float32 from which on it is infinite or NaN
DTYPES = (torch.float32, torch.bfloat16)  # that are written directly


def dequantise(
    points: np.ndarray, step: float, row_scales: Tensor, column_scales: Tensor, order: Tensor | None, out: Tensor
) -> bool:
    """`points * step / row_scales / column_scales`, in float32 and in this order, rounded to the dtype of `out`.

    Args:
        points: (R, N) whole numbers.
        step: What one is worth.
        row_scales: (R,) float32.
        column_scales: (N,) float32.
        order: (N,) the column of `out` that each column of `points` becomes; nothing for its own.
        out: (R, N) contiguous, of one of `DTYPES`.

    Returns:
        Whether all weights are finite in float32.
    """
    places = np.empty(0, np.int64) if order is None else order.numpy()
    halves, singles = np.empty((0, 0), np.uint16), np.empty((0, 0), np.float32)
    if out.dtype == torch.bfloat16:
        halves = out.view(torch.uint16).numpy()
    else:
        singles = out.numpy()
    largest = _dequantise(points, np.float32(step), row_scales.numpy(), column_scales.numpy(), places, halves, singles)
    return bool(largest < LARGEST_BITS)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dequantise(points, step, row_scales, column_scales, order, halves, singles):  # pragma: no cover
    """Into `halves` (bf16 as uint16) or `singles`, whichever is not empty; the bits of the largest magnitude."""
    num_rows, num_columns = points.shape
    row, ordered = np.empty(num_columns, np.float32), np.empty(num_columns, np.float32)
    bits = row.view(np.int32)
    largest = np.int32(0)
    for i in range(num_rows):
        scale = row_scales[i]
        for j in range(num_columns):
            row[j] = np.float32(points[i, j]) * step / scale / column_scales[j]
        for j in range(num_columns):
            largest = max(largest, bits[j] & np.int32(0x7FFFFFFF))
        if len(order):
            for j in range(num_columns):
                ordered[order[j]] = row[j]
            row[:] = ordered
        if len(singles):
            singles[i] = row
        else:
            for j in range(num_columns):  # to the nearest, ties to even
                halves[i, j] = (bits[j] + np.int32(0x7FFF) + ((bits[j] >> 16) & np.int32(1))) >> 16
    return largest
