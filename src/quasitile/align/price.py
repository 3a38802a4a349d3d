"""A price on stored bits while training, so that what was promised is kept without coarser steps afterwards.

The entropy coder gives a code about `1/2 log2(spread^2) + c` bits, the spread being that of its component or the
product of its row's and its column's. So one more unit of a code x costs `x / (spread^2 ln 2)` bits, which is added to its
gradient times a price in nats a bit. The price begins where the damage model has it and follows the stored size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from quasitile.align.processes import Processes
from quasitile.align.sharding import Shards, local
from quasitile.codec.packing import pack
from quasitile.runtime import TiledMatrix

ROUNDING_POWER = 1 / 12  # mean square that a code of 0 stands for
AIM = 0.995  # of the limit: what is a little too large in the end has to be rounded again, which costs more than it saves
CHECKS, CHECK_STEPS = 16, 10  # times that the size is measured during a run; never more often than that
RESPONSE = 15.0  # of the price to a size that is off, relative; at most a factor e at a time


class BitPrice:
    """What a bit costs, in nats a token.

    Args:
        matrices: Trainable.
        limit_bytes: That their payloads may take together.
        damage_nats: Of the model now, or another squared error. At the best division a bit is worth
            `2 ln 2 / number of weights` of it.
        processes: Of the run.
        shards: Of the model, where it has some.
    """

    def __init__(
        self,
        matrices: Sequence[TiledMatrix],
        limit_bytes: int,
        damage_nats: float,
        processes: Processes | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.matrices, self.limit_bytes = list(matrices), limit_bytes
        self.processes, self.shards = processes, shards
        num_weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in self.matrices)
        self.nats_per_bit = 2 * math.log(2) * max(damage_nats, 1e-3) / max(1, num_weights)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the cost of bits to the gradients of all codes."""
        priced = [
            (values, values is block.residual)
            for matrix in self.matrices
            for block in matrix.rank_blocks()
            for values in block.coefficients()
            if values.grad is not None
        ]
        sums = [local(values.detach()).square().sum(0) for values, _ in priced]
        if self.shards is not None and self.processes is not None and sums:  # a shard has some rows of all columns
            sums = list(self.processes.sum(torch.cat(sums)).split([len(each) for each in sums]))
        for (values, in_residual), columns in zip(priced, sums, strict=True):
            assert values.grad is not None
            mine = local(values.detach())
            price = 1 / spread(mine, columns / len(values), in_residual)
            local(values.grad).addcmul_(mine, price, value=self._slope)

    @property
    def _slope(self) -> float:
        return self.nats_per_bit / math.log(2)

    def follow_at(self, step: int, num_steps: int) -> None:
        """`follow`, some times in a run."""
        if step and step % max(CHECK_STEPS, num_steps // CHECKS) == 0:
            self.follow()

    def follow(self) -> int:
        """Measure the size, move the price towards the one that keeps the limit, and return the size in bytes."""
        size = 0
        for matrix in self.matrices:
            with self.shards.whole(matrix) if self.shards is not None else nullcontext():
                size += pack(matrix.coded()).numel()
        self.nats_per_bit *= math.exp(max(-1.0, min(1.0, RESPONSE * (size / (AIM * self.limit_bytes) - 1))))
        return size


def bit_price(
    matrices: Sequence[TiledMatrix],
    limit_bytes: int,
    damage_nats: float,
    processes: Processes | None = None,
    shards: Shards | None = None,
) -> BitPrice | None:
    """A price, or nothing where a path through a trellis must be searched for before a size is known: longer than a step."""
    if any(matrix.num_states > 1 for matrix in matrices):
        return None
    return BitPrice(matrices, limit_bytes, damage_nats, processes, shards)


def spread(values: Tensor, column_power: Tensor, by_rows_and_columns: bool) -> Tensor:
    """Mean squares that codes (P, Q) are coded with, to broadcast: of every column, or rows times columns.

    Args:
        values: A factor's coefficients or a residual's codes; of a shard, some rows.
        column_power: (Q,) mean squares of the columns, of all rows.
        by_rows_and_columns: Whether they are a residual's.
    """
    columns = column_power + ROUNDING_POWER
    if not by_rows_and_columns:
        return columns
    rows = values.square().mean(1) + ROUNDING_POWER
    return rows[:, None] * (columns / (column_power.mean() + ROUNDING_POWER))
