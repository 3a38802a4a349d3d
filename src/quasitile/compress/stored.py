"""Moments that streamed calibration left on disk, found by the name of the matrix."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from quasitile.checkpoint.streams import TensorReader
from quasitile.codec.coding import Coding
from quasitile.codec.plain import InputSide, input_side
from quasitile.compress.calibrate import Moments
from quasitile.compress.journal import Journal


@dataclass(frozen=True)
class StoredMoments:
    """Where the moments of one matrix lie. Small, so that it can be sent to another process.

    Attributes:
        name: Of the matrix.
        leader: Of the matrix whose inputs are the same and were kept.
        inputs_file: With what is kept of the inputs.
        outputs_file: With the gradients' mean squares.
        edges: Of the blocks of the second moment.
        power: Of the inputs, where calibration did not see them.
        gradient: Mean square of the gradients, where calibration did not see them.
    """

    name: str
    leader: str
    inputs_file: Path
    outputs_file: Path
    edges: tuple[int, ...]
    power: float | None = None
    gradient: float | None = None

    def outputs(self) -> Tensor:
        """(M,), see `Moments`."""
        outputs = TensorReader(self.outputs_file).read(f"{self.name}.outputs")
        return outputs if self.gradient is None else torch.full_like(outputs, self.gradient)

    def moments(self) -> Moments:
        """Both, the second moment dense (N, N) with zeros between its blocks."""
        if self.power is not None:
            return Moments(self.power * torch.eye(self.edges[-1]), self.outputs())
        blocks = TensorReader(self.inputs_file).read(f"{self.leader}.inputs")
        if blocks.ndim == 3:
            parts = [
                block[: stop - start, : stop - start] for block, (start, stop) in zip(blocks, pairwise(self.edges), strict=True)
            ]
            blocks = torch.block_diag(*parts)
        return Moments(blocks, self.outputs())

    def side(self, coding: Coding) -> InputSide:
        """What plain coding needs of the inputs."""
        if self.power is not None:
            width = max(stop - start for start, stop in pairwise(self.edges))
            return input_side(self.power * torch.eye(width).repeat(len(self.edges) - 1, 1, 1), self.edges, coding)
        reader = TensorReader(self.inputs_file)
        return InputSide(reader.read(f"{self.leader}.columns"), reader.read(f"{self.leader}.lower"), self.edges)


def stored_moments(journal: Journal, edges: dict[str, list[int]]) -> dict[str, StoredMoments]:
    """All of them, by name, once calibration is done; inputs of a compressed prefix where there are any."""
    done = journal.recall("calibrated")
    assert done is not None, "calibration is not done"
    found: dict[str, StoredMoments] = {}
    for key, line in journal.entries.items():
        if key.startswith("backwards/"):
            file = journal.path(line["file"])
            for name, leader in line["leaders"].items():
                power, gradient = done["prices"].get(name, (None, None))
                found[name] = StoredMoments(name, leader, file, file, tuple(edges[name]), power, gradient)
    return found
