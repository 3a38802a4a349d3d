"""The frequency domain (paper 3.2.1): orthonormal transforms, and what is cut off.

A transform is an orthonormal matrix `F` (n x n) whose rows are the basis functions, ordered from
low to high frequency where that means something. Applied by multiplication: coefficients are
`F x`, the inverse is `F.T c`. Orthonormality makes the power of dropped coefficients the squared
error (Parseval).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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


def fft_basis(size: int) -> Tensor:
    """The real orthonormal Fourier basis: the constant, then cosine and sine of 1, 2, ... periods.

    The last row of an even size is +-1 in turn, whose sine is zero.
    """
    index = torch.arange(size, dtype=torch.float64)
    rows = [torch.full((size,), 1 / math.sqrt(size), dtype=torch.float64)]
    for periods in range(1, (size + 1) // 2):
        angle = 2 * math.pi / size * (periods * index % size)
        rows += [torch.cos(angle) * math.sqrt(2 / size), torch.sin(angle) * math.sqrt(2 / size)]
    if size % 2 == 0:
        rows.append((1 - 2 * (index % 2)) / math.sqrt(size))
    return torch.stack(rows)


def hadamard_basis(size: int) -> Tensor:
    """Walsh-Hadamard functions in order of sequency (half the number of sign changes).

    There are none for sizes that are not a power of two. Such a size is the sum of the powers of
    two in its binary digits; each part, largest first, gets the functions of its own size, and
    all rows are ordered by sign changes an index, then by part. So every size has an exact basis.
    """
    parts = [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]
    matrix = torch.block_diag(*(_walsh(part) for part in parts))
    order = sorted((change / part, part_index, change) for part_index, part in enumerate(parts) for change in range(part))
    starts = [sum(parts[:part_index]) for part_index in range(len(parts))]
    return matrix[[starts[part_index] + change for _, part_index, change in order]]


def _walsh(size: int) -> Tensor:
    """The orthonormal Walsh functions of a power of two; row k changes its sign k times."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    changes = (matrix[:, 1:] != matrix[:, :-1]).sum(1)
    return matrix[changes.argsort()] / math.sqrt(size)


def wavelet_basis(size: int) -> Tensor:
    """The orthonormal Haar cascade: the constant, then differences from the coarsest level to the finest.

    Each level replaces neighbours by their sum and their difference. An odd one at the end passes to
    the next level unchanged; from there on, neighbours stand for different numbers of indices m and
    n, and are combined as `(sqrt(m) a + sqrt(n) b) / sqrt(m + n)` and `(sqrt(n) a - sqrt(m) b) /
    sqrt(m + n)` (unbalanced Haar), so that the first row is constant for every size.
    """
    means = torch.eye(size, dtype=torch.float64)  # rows: unit vectors, each constant on the indices it stands for
    masses = torch.ones(size, dtype=torch.float64)
    levels = []
    while len(means) > 1:
        paired = len(means) // 2 * 2
        first, second = means[0:paired:2], means[1:paired:2]
        m, n = masses[0:paired:2], masses[1:paired:2]
        weight, other = (m / (m + n)).sqrt()[:, None], (n / (m + n)).sqrt()[:, None]
        levels.append(other * first - weight * second)
        means = torch.cat([weight * first + other * second, means[paired:]])
        masses = torch.cat([m + n, masses[paired:]])
    return torch.cat([means, *reversed(levels)])


# The place in this dictionary is what is stored: new ones go to the end.
TRANSFORMS: dict[str, Callable[[int], Tensor]] = {
    "dct": dct_basis,
    "identity": identity_basis,
    "random": random_basis,
    "fft": fft_basis,
    "hadamard": hadamard_basis,
    "wavelet": wavelet_basis,
}


@lru_cache(maxsize=256)
def basis(transform: str, size: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """The (size, size) matrix of a transform, cached; on the CPU unless another device is named.

    Raises:
        ValueError: Unknown transform.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform={transform!r} is not one of {', '.join(TRANSFORMS)}; correct `spectrum.transform`")
    return TRANSFORMS[transform](size).to(device, dtype)


def round_with_dead_zone(values: Tensor, threshold: float) -> Tensor:
    """Round to whole numbers, and drop what is smaller than `threshold` (the paper's tau).

    Args:
        values: Spectral coefficients in units of the step.
        threshold: In steps; 0.5 is ordinary rounding, more truncates more.
    """
    rounded = values.round()
    return rounded if threshold <= 0.5 else torch.where(values.abs() < threshold, 0.0, rounded)


def above_threshold(values: Tensor, amount: float, num_axes: int = 1) -> Tensor:
    """Keep what is at least `amount` in magnitude: the paper's tau."""
    return values.abs() >= amount


def most_energy(values: Tensor, amount: float, num_axes: int = 1) -> Tensor:
    """Keep the fewest, largest coefficients that hold a share `amount` of the power."""
    power, order = values.square().flatten().sort(descending=True, stable=True)
    total = power.cumsum(0)
    keep = torch.zeros(values.numel(), dtype=torch.bool)
    keep[order] = total - power < amount * total[-1:]
    return keep.view(values.shape)


def low_pass(values: Tensor, amount: float, num_axes: int = 1) -> Tensor:
    """Keep the lowest share `amount` of the frequencies along each of the first `num_axes` dimensions."""
    keep = torch.ones_like(values, dtype=torch.bool)
    for axis in range(num_axes):
        size = values.shape[axis]
        kept = num_kept(size, amount)
        keep.narrow(axis, kept, size - kept).fill_(False)
    return keep


def within_budget(values: Tensor, amount: float, num_axes: int = 1) -> Tensor:
    """Keep the largest `ceil(amount * n)` of the n coefficients; of equal ones, the first."""
    keep = torch.zeros(values.numel(), dtype=torch.bool)
    keep[values.abs().flatten().argsort(descending=True, stable=True)[: num_kept(values.numel(), amount)]] = True
    return keep.view(values.shape)


def num_kept(count: int, share: float) -> int:
    """`ceil(share * count)`, where 0.55 of 100 is 55."""
    return math.ceil(share * count - 1e-9)


# A rule is a function `(values, amount, num_axes) -> mask of what is kept`; the first `num_axes` dimensions are frequencies.
TRUNCATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "threshold": above_threshold,
    "energy": most_energy,
    "low_pass": low_pass,
    "budget": within_budget,
}


@dataclass(frozen=True)
class Truncation:
    """How the coefficients of an array are rounded, and which are dropped.

    Attributes:
        rule: A name in `TRUNCATIONS`. Small coefficients are dropped by the dead zone in any case.
        threshold: Dead zone in steps.
        keep: What the rules other than `threshold` keep: a share of the power, of the frequencies
            along each axis, or of the coefficients.
    """

    rule: str = "threshold"
    threshold: float = 0.5
    keep: float = 1.0

    def codes(self, values: Tensor, num_axes: int = 1) -> tuple[Tensor, Tensor]:
        """Whole numbers, and what training starts from: the values, with zeros for what a rule other than `threshold` drops.

        Args:
            values: Coefficients in units of the step.
            num_axes: How many of the first dimensions are frequencies.
        """
        rounded = round_with_dead_zone(values, self.threshold)
        if self.rule == "threshold":
            return rounded, values
        keep = TRUNCATIONS[self.rule](values, self.keep, num_axes)
        nothing = torch.zeros_like(values)
        return torch.where(keep, rounded, nothing), torch.where(keep, values, nothing)


PLAIN = Truncation()  # rounding alone
