"""How many numbers are stored, where a method counts numbers and does not price them one by one.

Published methods keep a share of the numbers at a fixed width. Here the size and the wanted width
(`number_bits`) give that share; the rounding step then meets the size exactly, so that the numbers
end up at about that width.
"""

from __future__ import annotations

import math
from dataclasses import replace

from quasitile.codec.coding import Coding
from quasitile.codec.structure import Structure

LEAST_SHARE = 1e-6
HASHED_SIDE = 8  # of the tiles whose spectra are hashed


def number_share(num_bits: float, number_bits: float, num_weights: int) -> float:
    """The share of all weights that so many bits are for, at so many bits a number."""
    return min(1.0, max(LEAST_SHARE, num_bits / number_bits / num_weights))


def with_share(coding: Coding, share: float, factors: float) -> Coding:
    """A coding that keeps a share of each matrix' numbers.

    Args:
        coding: Its ranks and its part of the residual say what is counted.
        share: Of the weights.
        factors: The part of them that factors get where a counted residual stands beside them.
    """
    counted = coding.residual_part != "all"
    if not counted:
        return replace(coding, factor_share=share)
    if coding.ranks != "share":
        return replace(coding, residual_share=share)
    return replace(coding, factor_share=factors * share, residual_share=(1 - factors) * share)


def structure_for(name: str, shape: tuple[int, int], share: float) -> Structure | None:
    """The structure that stores about this share of a matrix' numbers, or nothing for `none`.

    Circulant blocks have sides of a power of two, no longer than the matrix.
    """
    if name == "none":
        return None
    if name == "circulant":
        side = 2 ** min(round(math.log2(1 / share)), int(math.log2(min(shape))))
        return Structure(name, shape, side, side)
    return Structure(name, shape, min(HASHED_SIDE, *shape), min(round(1 / share), math.prod(shape)))
