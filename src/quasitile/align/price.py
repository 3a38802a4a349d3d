"""A price on stored bits while training, so that what was promised is kept without coarser steps afterwards.

The entropy coder gives a code about `1/2 log2(spread^2) + c` bits, the spread being that of its component or the
product of its row's and its column's. So one more unit of a code x costs `x / (spread^2 ln 2)` bits, which is added to its
gradient times a price in nats a bit. The price begins where the damage model has it and follows the stored size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quasitile.codec.packing import estimated_bytes
from quasitile.runtime import TiledMatrix

ROUNDING_POWER = 1 / 12  # mean square that a code of 0 stands for
RESPONSE = 15.0  # of the price to a size that is off, relative; at most a factor e at a time


class BitPrice:
    """What a bit costs, in nats a token.

    Args:
        matrices: Trainable.
        limit_bytes: That their payloads may take together.
        damage_nats: Of the model now. At the best division a bit is worth `2 ln 2 / number of weights` of it.
    """

    def __init__(self, matrices: Sequence[TiledMatrix], limit_bytes: int, damage_nats: float) -> None:
        self.matrices, self.limit_bytes = list(matrices), limit_bytes
        num_weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in self.matrices)
        self.nats_per_bit = 2 * math.log(2) * max(damage_nats, 1e-3) / max(1, num_weights)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the cost of bits to the gradients of all codes."""
        for matrix in self.matrices:
            for block in matrix.rank_blocks():
                for values in block.coefficients():
                    if values.grad is not None:
                        values.grad.addcmul_(values, 1 / spread(values, values is block.residual), value=self._slope)

    @property
    def _slope(self) -> float:
        return self.nats_per_bit / math.log(2)

    def follow(self) -> int:
        """Measure the size, move the price towards the one that keeps the limit, and return the size in bytes."""
        size = round(sum(estimated_bytes(matrix.coded()) for matrix in self.matrices))
        self.nats_per_bit *= math.exp(max(-1.0, min(1.0, RESPONSE * (size / self.limit_bytes - 1))))
        return size


def spread(values: Tensor, by_rows_and_columns: bool) -> Tensor:
    """Mean squares that codes (P, Q) are coded with, to broadcast: of every column, or rows times columns.

    Args:
        values: A factor's coefficients, or a residual's codes.
        by_rows_and_columns: Whether they are a residual's.
    """
    power = values.detach().square()
    columns = power.mean(0) + ROUNDING_POWER
    if not by_rows_and_columns:
        return columns
    rows = power.mean(1) + ROUNDING_POWER
    return rows[:, None] * (columns / (power.mean() + ROUNDING_POWER))
