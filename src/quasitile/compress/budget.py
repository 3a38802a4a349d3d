"""What is left of the bytes while matrices are coded one after another, so that the size is met in one walk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quasitile.compress.allocate import CLOSE, slope_through

LARGEST_MOVE = 0.3  # of the logarithm of the step
SHARE_OF_LATEST = 0.3  # in the running mean of how sizes differ from the plan
STEEPEST = 2.5  # how much steeper the last matrices may be than all of them, or less steep
LAST, TRIES = 8, 5  # matrices that are coded again where the target is missed, and how often at most


@dataclass
class Budget:
    """Lets what is still to be coded meet the target.

    Attributes:
        measure: What the target counts of a set of coded matrices: `Coded` ones in memory, or the facts of payloads on disk.
        target: Not to be exceeded.
        slope: d log(size) / d log(step).
        step: At which matrices were planned.
        planned: All of them at that step.
        done: Those that have been coded since, with what they were made from (jobs or tasks) and their step.
        growth: Size over what was planned, at the same step, of those.
    """

    measure: Callable[[dict[str, Any]], int]
    target: int
    slope: float
    step: float
    planned: dict[str, Any]
    done: dict[str, tuple[Any, Any, float]] = field(default_factory=dict)
    growth: float = 1.0

    def coded(self) -> dict[str, Any]:
        """All matrices as they stand."""
        return self.planned | {name: each for name, (each, _, _) in self.done.items()}

    @property
    def steepness(self) -> float:
        """Of the matrices alone, d log(size) / d log(step): what else is counted does not change with the step."""
        return self.slope * self.target / max(self.size(self.planned), 1)

    def size(self, names: Iterable[str]) -> int:
        """That was planned for these matrices."""
        return self.measure({name: self.planned[name] for name in names}) - self.measure({})

    def next_step(self, left: list[str]) -> float:
        """For matrices that are still to be coded."""
        planned = self.size(left)
        room = planned + self.target * (1 - CLOSE / 2) - self.measure(self.coded())
        move = math.log(max(room, 1) / max(planned * self.growth, 1)) / self.steepness
        return self.step * math.exp(max(-LARGEST_MOVE, min(LARGEST_MOVE, move)))

    def take(self, coded: dict[str, Any], jobs: Sequence[Any], step: float) -> None:
        """Note what has been coded."""
        self.done |= {job.name: (coded[job.name], job, step) for job in jobs}
        planned = self.size(coded) * (step / self.step) ** self.steepness
        found = self.measure(coded) - self.measure({})
        if planned > 0:
            self.growth += SHARE_OF_LATEST * (found / planned - self.growth)

    def settle(self, code_again: Callable[[list[Any], float], dict[str, Any]]) -> dict[str, Any]:
        """All matrices; the last ones are coded again at another step where the target is missed.

        Args:
            code_again: Codes jobs or tasks at a step.
        """
        best, most = self.planned, -1
        latest = list(self.done)[-LAST:]
        first = {name: self.done[name][2] for name in latest}  # steps, which keep their ratios
        factor, points = 1.0, []
        for _ in range(TRIES):
            size = self.measure(self.coded())
            if most < size <= self.target:
                best, most = self.coded(), size
            if self.target * (1 - CLOSE) <= size <= self.target:
                break
            mine = max(self.measure({name: self.done[name][0] for name in latest}) - self.measure({}), 1)
            points.append((math.log(factor), math.log(mine)))
            slope = slope_through(points, self.steepness)
            slope = max(STEEPEST * self.steepness, min(self.steepness / STEEPEST, slope))
            move = math.log(max(mine + self.target * (1 - CLOSE / 2) - size, 1) / mine) / slope
            factor *= math.exp(max(-LARGEST_MOVE, min(LARGEST_MOVE, move)))
            for step in dict.fromkeys(first.values()):
                jobs = [self.done[name][1] for name in latest if first[name] == step]
                self.take(code_again(jobs, step * factor), jobs, step * factor)
        return best
