"""Matrices in which many weights share one number: what is stored is smaller, and is expanded on decoding.

A structure is a linear map from a stored matrix to the weight. It is stored by name and two whole
numbers in the model's configuration (docs/format.md); the stored matrix is coded like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from quasitile.codec.spectrum import basis

STORED_WIDTH = 256  # of a stored matrix whose values have no place of their own
HASH_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Structure:
    """Which weights share a number.

    Attributes:
        name: In `STRUCTURES`.
        shape: (M, N) of the weight.
        side: Of its square blocks.
        ratio: About how many weights share a number.
    """

    name: str
    shape: tuple[int, int]
    side: int
    ratio: int

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Of the matrix that is coded."""
        return STRUCTURES[self.name].stored_shape(self)

    def expand(self, stored: Tensor) -> Tensor:
        """The weight (M, N) that a stored matrix stands for; differentiable."""
        return STRUCTURES[self.name].expand(self, stored)

    def project(self, weight: Tensor) -> Tensor:
        """The stored matrix whose weight is nearest to (M, N), each entry counting alike."""
        return STRUCTURES[self.name].project(self, weight)

    def moments(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """What an error of the stored matrix costs, in the separable form of an error of the weight.

        Args:
            inputs: (N, N) second moment of the inputs.
            outputs: (M,) mean squares of the gradient at each output.

        Returns:
            The same two for the stored matrix.
        """
        return STRUCTURES[self.name].moments(self, inputs, outputs)


def _blocks(weight: Tensor, side: int) -> Tensor:
    """A matrix as blocks (rows of blocks, columns of blocks, side, side), padded with zeros."""
    down, across = (-size % side for size in weight.shape)
    padded = torch.nn.functional.pad(weight, (0, across, 0, down))
    return padded.unflatten(0, (-1, side)).unflatten(2, (-1, side)).transpose(1, 2)


def _matrix(blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """Back from blocks, cut to the shape."""
    return blocks.transpose(1, 2).flatten(2, 3).flatten(0, 1)[: shape[0], : shape[1]]


def _cyclic(side: int) -> Tensor:
    """(p - q) mod side for row p and column q of a block; and, since it is its own inverse in q, the q of a diagonal."""
    index = torch.arange(side)
    return (index[:, None] - index) % side


def circulant_shape(structure: Structure) -> tuple[int, int]:
    """A row a row of blocks: the first columns of all its blocks, side by side."""
    (rows, columns), side = structure.shape, structure.side
    return -(-rows // side), -(-columns // side) * side


def expand_circulant(structure: Structure, stored: Tensor) -> Tensor:
    """Entry (p, q) of a block is number `(p - q) mod side` of its first column."""
    columns = stored.unflatten(1, (-1, structure.side))
    return _matrix(columns[:, :, _cyclic(structure.side).to(stored.device)], structure.shape)


def project_circulant(structure: Structure, weight: Tensor) -> Tensor:
    """The means of each block's cyclic diagonals, which are the diagonal of its two-dimensional Fourier transform."""
    place = _cyclic(structure.side)[None, None].to(weight.device)

    def sums(values: Tensor) -> Tensor:
        blocks = _blocks(values, structure.side)
        return blocks.gather(3, place.expand(blocks.shape)).sum(2).flatten(1)

    return sums(weight) / sums(torch.ones_like(weight)).clamp_min(1)


def circulant_moments(structure: Structure, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Row p of a block meets the inputs in an order turned by p; the mean over p, and the sum of the rows' prices."""
    (num_rows, num_columns), side = structure.shape, structure.side
    padded = torch.nn.functional.pad(inputs, (0, -num_columns % side) * 2)
    start = torch.arange(0, len(padded), side)[:, None]
    mean = torch.zeros_like(padded)
    for turned in _cyclic(side):
        order = (start + turned).flatten()
        mean += padded[order][:, order] / side
    return mean, torch.nn.functional.pad(outputs, (0, -num_rows % side)).unflatten(0, (-1, side)).sum(1)


def bucket_counts(structure: Structure) -> list[int]:
    """How many numbers each frequency of a hashed spectrum has: shares fall linearly with frequency, none is empty."""
    (rows, columns), side = structure.shape, structure.side
    num_frequencies = 2 * side - 1
    num_tiles = -(-rows // side) * -(-columns // side)
    coefficients = [num_tiles * min(f + 1, num_frequencies - f) for f in range(num_frequencies)]
    weights = [count * (1 - f / num_frequencies) for f, count in enumerate(coefficients)]
    room = rows * columns / structure.ratio
    given = [max(1, math.floor(room * weight / sum(weights))) for weight in weights]
    return [min(count, number) for count, number in zip(coefficients, given, strict=True)]


def hashed_shape(structure: Structure) -> tuple[int, int]:
    """All numbers, frequency after frequency, in rows of 256."""
    total = sum(bucket_counts(structure))
    width = min(STORED_WIDTH, total)
    return -(-total // width), width


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def hashed_places(structure: Structure) -> tuple[Tensor, Tensor]:
    """Which number each coefficient uses, and with which sign; both (rows of tiles, columns of tiles, side, side).

    Coefficient (i, j) of the matrix of all tiles' spectra is hashed to 32 bits: the lowest is the
    sign, the others modulo the frequency's count are the number among those of its frequency.
    """
    side, counts = structure.side, torch.tensor(bucket_counts(structure))
    rows, columns = (-(-size // side) * side for size in structure.shape)
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    mixed = (row * 2654435761 + column * 2246822519 + 374761393) & HASH_BITS
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & HASH_BITS
    mixed ^= mixed >> 16
    frequency = row % side + column % side
    place = (counts.cumsum(0) - counts)[frequency] + (mixed >> 1) % counts[frequency]
    return _blocks(place, side), _blocks(1 - 2 * (mixed & 1), side)


def expand_hashed(structure: Structure, stored: Tensor) -> Tensor:
    """Every tile is the inverse DCT of coefficients that are looked up."""
    place, sign = (each.to(stored.device) for each in hashed_places(structure))
    transform = basis("dct", structure.side, stored.dtype).to(stored.device)
    return _matrix(transform.T @ (sign * stored.flatten()[place]) @ transform, structure.shape)


def project_hashed(structure: Structure, weight: Tensor) -> Tensor:
    """Each number is the mean of the coefficients that use it, signs undone."""
    place, sign = hashed_places(structure)
    transform = basis("dct", structure.side, weight.dtype)
    spectrum = transform @ _blocks(weight, structure.side) @ transform.T
    uses = _bucket_sums(structure, torch.ones_like(spectrum), place)
    return _bucket_sums(structure, sign * spectrum, place) / uses.clamp_min(1)


def _bucket_sums(structure: Structure, values: Tensor, place: Tensor) -> Tensor:
    rows, columns = structure.stored_shape
    total = torch.zeros(rows * columns, dtype=values.dtype)
    return total.index_add_(0, place.flatten(), values.flatten()).view(rows, columns)


def hashed_moments(structure: Structure, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """As if inputs were uncorrelated and alike: a number costs what its coefficients do together."""
    place, _ = hashed_places(structure)
    uses = _bucket_sums(structure, torch.ones(place.shape, dtype=outputs.dtype), place).mean(1)
    return inputs.diagonal().mean() * torch.eye(structure.stored_shape[1], dtype=inputs.dtype), uses * outputs.mean()


@dataclass(frozen=True)
class Sharing:
    """The functions of a structure; see the methods of `Structure`."""

    stored_shape: Callable[[Structure], tuple[int, int]]
    expand: Callable[[Structure, Tensor], Tensor]
    project: Callable[[Structure, Tensor], Tensor]
    moments: Callable[[Structure, Tensor, Tensor], tuple[Tensor, Tensor]]


STRUCTURES: dict[str, Sharing] = {
    "circulant": Sharing(circulant_shape, expand_circulant, project_circulant, circulant_moments),
    "hashed": Sharing(hashed_shape, expand_hashed, project_hashed, hashed_moments),
}
