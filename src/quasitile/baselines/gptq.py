"""GPTQ at a fixed rate, after Frantar et al. (arXiv 2210.17323): the usual way to the same bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from quasitile.codec.factors import damped_cholesky

BITS_OF_GROUP = 32  # its scale and its zero point, 16 bits each


def gptq(weight: Tensor, second_moment: Tensor, bits: int, group: int = 64, damping: float = 0.01) -> tuple[Tensor, float]:
    """Round a matrix to `bits` a weight with an asymmetric grid for each group of columns of a row.

    Columns are rounded from first to last; what a column loses is made up for by those after it.

    Args:
        weight: (M, N).
        second_moment: (N, N) of the inputs.
        bits: A weight, 1 to 8.
        group: Columns that share a grid.
        damping: Share of the mean second moment added to its diagonal.

    Returns:
        The rounded matrix (M, N) in float32, and the stored bits a weight, grids included.

    Raises:
        ValueError: `bits` is out of range.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits} must lie in [1, 8]")
    lower = damped_cholesky(second_moment, damping)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    current, rounded = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    num_columns, largest = weight.shape[1], 2**bits - 1
    low = scale = torch.zeros(len(weight), dtype=torch.float64)
    for j in range(num_columns):
        if j % group == 0:
            columns = current[:, j : j + group]
            low = columns.amin(1).clamp_max(0)
            scale = ((columns.amax(1).clamp_min(0) - low) / largest).clamp_min(1e-12)
        rounded[:, j] = ((current[:, j] - low) / scale).round().clamp(0, largest) * scale + low
        error = (current[:, j] - rounded[:, j]) / upper[j, j]
        current[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    groups = -(-num_columns // group)
    return rounded.float(), bits + BITS_OF_GROUP * groups / num_columns
