"""SVD-LLM as published (arXiv 2403.07378), with factors in 16 bits: whitening, and one share of numbers for every matrix."""

from __future__ import annotations

from torch import Tensor

from quasitile.codec.factors import damped_cholesky, whitened_svd


def svd_llm(weight: Tensor, second_moment: Tensor, share: float, damping: float = 1e-6) -> tuple[Tensor, int]:
    """Truncate the singular value decomposition of a matrix that inputs have been whitened for.

    Args:
        weight: (M, N).
        second_moment: (N, N) of the inputs.
        share: Of the matrix' M N numbers that both factors have together.
        damping: Share of the mean second moment added to its diagonal, so that it can be inverted.

    Returns:
        The product of the factors (M, N), float32, each factor rounded to float16; and how many
        numbers they have: `rank (M + N)` for the largest rank within the share.
    """
    num_rows, num_columns = weight.shape
    left, values, right = whitened_svd(weight.double(), damped_cholesky(second_moment, damping))
    rank = min(int(share * num_rows * num_columns / (num_rows + num_columns)), len(values))
    root = values[:rank].sqrt()
    factors = ((left[:, :rank] * root).half().float(), (right[:, :rank] * root).half().float())
    return factors[0] @ factors[1].T, rank * (num_rows + num_columns)
