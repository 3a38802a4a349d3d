"""Training by several processes, through Accelerate: each takes its share of every batch, gradients are averaged."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.errors import InputError
from quasitile.runtime.device import CPU


class Processes:
    """The processes of a run; one where nothing launched more.

    Args:
        batch_size: Windows a step, of all processes together; 0 where gradients are sums and shares may differ.
        num_parts: Parts that each process computes its share in.
        device: Of this process.
        alone: Take no part in what was launched.

    Raises:
        InputError: The batch cannot be shared equally, which the mean over processes needs.
    """

    def __init__(self, batch_size: int, num_parts: int, device: torch.device = CPU, alone: bool = False) -> None:
        self.num, self.index, self._accelerator, self.num_parts = 1, 0, None, num_parts
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not alone:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=device.type == "cpu")
            self.num, self.index = self._accelerator.num_processes, self._accelerator.process_index
        if batch_size % (self.num * num_parts):
            raise InputError(
                f"align.batch_size={batch_size} does not divide into {self.num} processes x {num_parts} parts; "
                "change batch_size or gradient_accumulation"
            )

    def check_shards(self, stage: str) -> None:
        """Refuse to shard with nobody to share with.

        Raises:
            InputError: There is one process.
        """
        if self.num == 1:
            raise InputError(
                f"{stage}.shard shares the model among processes, and there is one; launch several, or leave it out"
            )

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def parts(self, rows: list[int]) -> list[list[int]]:
        """This process' rows of a batch, part by part."""
        own = rows[self.index :: self.num]
        return [own[part :: self.num_parts] for part in range(self.num_parts)]

    def share(self, rows: list[int]) -> tuple[list[int], int]:
        """This process' share of some rows, and how many of them count.

        Every process gets as many, since shards compute only together: those that count come first, and one may be there again.
        """
        own = rows[self.index :: self.num]
        return own + rows[:1] * (math.ceil(len(rows) / self.num) - len(own)), len(own)

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace every gradient by its mean over the processes."""
        self._reduce([p for group in optimizer.param_groups for p in group["params"] if p.grad is not None], "mean")

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; one without a gradient adds nothing."""
        if self._accelerator is None:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._reduce(parameters, "sum")

    def _reduce(self, parameters: list[nn.Parameter], reduction: str) -> None:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self._accelerator is None or not grads:
            return
        flat: Any = self._accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), reduction=reduction)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def sum(self, values: Tensor) -> Tensor:
        """Of a tensor over the processes."""
        if self._accelerator is None:
            return values
        reduced: Any = self._accelerator.reduce(values, reduction="sum")
        return reduced

    def mean(self, value: Tensor) -> float:
        """Of a number over the processes."""
        if self._accelerator is not None:
            reduced: Any = self._accelerator.reduce(value, reduction="mean")
            value = reduced
        return float(value)

    @contextmanager
    def folder(self, out: str | Path) -> Iterator[Path]:
        """Where to write: `out`, or for all but the first process a place that is thrown away."""
        if self.first:
            yield Path(out)
        else:
            scratch = tempfile.mkdtemp()
            try:
                yield Path(scratch) / "out"
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
