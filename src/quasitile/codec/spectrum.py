"""The frequency domain (paper 3.2.1): orthonormal transforms, and what is cut off.

A transform is an orthonormal matrix `F` (n x n) whose rows are the basis functions, ordered from
low to high frequency where that means something. Applied by multiplication: coefficients are
`F x`, the inverse is `F.T c`. Orthonormality makes the power of dropped coefficients the squared
error (Parseval).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def dct_basis(size: int) -> Tensor:
    """The orthonormal DCT-II: row k is the cosine of frequency k / (2 size)."""
    index = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (index + 0.5) * index[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def identity_basis(size: int) -> Tensor:
    """No transform."""
    return torch.eye(size, dtype=torch.float64)


def random_basis(size: int) -> Tensor:
    """A random orthonormal basis, the same for every call: the control for any frequency claim."""
    generator = torch.Generator().manual_seed(size)
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


TRANSFORMS: dict[str, Callable[[int], Tensor]] = {
    "dct": dct_basis,
    "identity": identity_basis,
    "random": random_basis,
}


@lru_cache(maxsize=256)
def basis(transform: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (size, size) matrix of a transform, cached.

    Raises:
        ValueError: Unknown transform.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform={transform!r} is not one of {', '.join(TRANSFORMS)}; correct `spectrum.transform`")
    return TRANSFORMS[transform](size).to(dtype)


def round_with_dead_zone(values: Tensor, threshold: float) -> Tensor:
    """Round to whole numbers, and drop what is smaller than `threshold` (the paper's tau).

    Args:
        values: Spectral coefficients in units of the step.
        threshold: In steps; 0.5 is ordinary rounding, more truncates more.
    """
    return torch.where(values.abs() < threshold, torch.zeros_like(values), values.round())


def low_pass(values: Tensor, share: float) -> Tensor:
    """Zero everything above the lowest `share` of the frequencies along the first dimension."""
    kept = math.ceil(share * values.shape[0])
    return torch.cat([values[:kept], torch.zeros_like(values[kept:])])


def energy_threshold(values: Tensor, share: float) -> float:
    """The magnitude below which coefficients together hold at most `1 - share` of the power."""
    magnitude = values.abs().flatten().sort().values
    below = magnitude.square().cumsum(0) <= (1 - share) * magnitude.square().sum()
    count = int(below.sum())
    return float(magnitude[count]) if count < len(magnitude) else math.inf
