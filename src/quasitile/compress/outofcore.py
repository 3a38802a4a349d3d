"""Compression from the shards on disk: nothing larger than one layer is ever in memory, and a killed run goes on.

calibrate (`streaming`) -> estimate the step from samples -> code every matrix at it, seldom twice -> write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quasitile.checkpoint.streams import Stored, write_streamed_shards
from quasitile.codec.coding import Coding
from quasitile.codec.packing import unpack
from quasitile.codec.plain import block_edges, column_cuts, input_side, is_plain
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import TOLERANCE, estimated_bytes, next_point, residual_bytes, slope_through, solve
from quasitile.compress.budget import Budget
from quasitile.compress.correct_streamed import StreamedCorrection
from quasitile.compress.fanout import Run
from quasitile.compress.journal import Journal
from quasitile.compress.pieces import Pieces
from quasitile.compress.propagate import propagate
from quasitile.compress.stored import stored_moments
from quasitile.compress.streaming import Walk, calibrate_streamed
from quasitile.compress.tasks import MatrixTask, code, estimate, sample
from quasitile.errors import InputError
from quasitile.progress import track
from quasitile.runtime import finish_folder, load_tokenizer, uncoded
from quasitile.runtime.device import CPU
from quasitile.runtime.plugin import convert_to_sizes
from quasitile.runtime.skeleton import Skeleton

PASSES = 6
SAMPLE_PASSES = 5
SAMPLED_APART, SAMPLED_FAR = 1.04, 2.0  # steps of a sample from the guessed one, and so many times that is still near it
PICTURE_NUMBERS = 1 << 24  # of the largest matrix whose layout is drawn


@dataclass(frozen=True)
class Amounts:
    """What the target counts.

    Attributes:
        target: Not to be exceeded.
        rest: Of everything that is no matrix.
        of: What counts of the facts of a matrix: `bytes` or `numbers`.
    """

    target: int
    rest: int
    of: str

    def total(self, facts: dict[str, dict[str, Any]]) -> int:
        """Of the whole model."""
        return self.rest + sum(each[self.of] for each in facts.values())


@dataclass
class OutOfCore:
    """One compression.

    Attributes:
        skeleton: The model without its weights.
        journal: Of the work folder.
        identity: Of the model folder's files.
        coding: How matrices are coded.
        tiling: Name, shorter side and seed.
        block_bytes: Of the largest block of a second moment.
        run: Calls functions on all workers.
        folder: Of the model.
    """

    skeleton: Skeleton
    journal: Journal
    identity: str
    coding: Coding
    tiling: tuple[str, int, int]
    block_bytes: int
    run: Run
    folder: str
    edges: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, short, seed = self.tiling
        by_shape: dict[int, list[int]] = {}
        for layer, place in self.skeleton.layers.items():
            num_columns = place.weight.shape[1]
            if num_columns not in by_shape:
                cuts = column_cuts(TILINGS[name](min(place.weight.shape[0], 4 * short), num_columns, short, seed))
                by_shape[num_columns] = block_edges(num_columns, self.block_bytes, cuts)
            self.edges[layer] = by_shape[num_columns]

    def calibrate(self, windows: torch.Tensor, batch_size: int, seed: int) -> Walk:
        """Moments of every matrix, on disk; what the calibration went through."""
        side = (lambda moment, edges: input_side(moment, edges, self.coding)) if is_plain(self.coding) else None
        there = windows.to(self.skeleton.device)
        walk = Walk(Pieces(self.skeleton), self.journal, there, batch_size, seed, self.edges.__getitem__, side)
        calibrate_streamed(walk)
        return walk

    def tasks(self) -> list[MatrixTask]:
        """A task a matrix, in the order of the model."""
        moments = stored_moments(self.journal, self.edges)
        versions = {line["file"]: line["sha256"] for line in self.journal.entries.values() if "file" in line}
        root = self.journal.folder
        return [
            MatrixTask(
                self.folder,
                self.identity,
                name,
                (place.weight.shape[0], place.weight.shape[1]),
                self.skeleton.direct(name),
                moments[name],
                versions[str(moments[name].inputs_file.relative_to(root))],
                self.tiling,
                self.coding,
            )
            for name, place in self.skeleton.layers.items()
        ]

    def each(self, function: Callable, calls: Sequence[tuple], description: str) -> list[Any]:
        """Results in the order of the calls."""
        results = dict(track(self.run(function, calls), description, total=len(calls)))
        return [results[number] for number in range(len(calls))]

    def first_step(self, tasks: list[MatrixTask], amounts: Amounts, room_bytes: float) -> tuple[float, float]:
        """The step that samples say meets the target, and how steeply the size falls there."""
        known = self.journal.recall("sampled")
        if known is not None:
            return known["step"], known["slope"]
        estimates = self.each(estimate, [(task,) for task in tasks], "look at spreads")
        if self.coding.residual is None:
            flat = [entry for entries in estimates for entry in entries]
            step = solve(lambda x: estimated_bytes(flat, x, self.coding.price), room_bytes)
        else:
            step = solve(lambda x: residual_bytes(estimates, x, self.coding), room_bytes)
        slope = -1.0
        if is_plain(self.coding):
            goal, kind = math.log(1 - TOLERANCE / 2), 0 if amounts.of == "bytes" else 1
            for _ in range(SAMPLE_PASSES):
                steps = (step * SAMPLED_APART, step / SAMPLED_APART)
                sampled = self.each(sample, [(task, steps) for task in tasks], "code samples")
                sizes = [amounts.rest + sum(each[place][kind] for each in sampled) for place in range(len(steps))]
                points = [(math.log(x), math.log(size / amounts.target)) for x, size in zip(steps, sizes, strict=True)]
                slope, tried = slope_through(points, slope), step
                step = math.exp(next_point(points, goal))
                if abs(math.log(step / tried)) < SAMPLED_FAR * math.log(SAMPLED_APART):
                    break
        self.journal.done("sampled", step=step, slope=slope)
        return step, slope

    def code_all(self, tasks: list[MatrixTask], part: int | str, step: float, quiet: bool = False) -> dict[str, dict[str, Any]]:
        """One pass, or a part of one: every matrix at a step, its payload in a file, its facts in the journal."""
        facts = {task.name: self.journal.recall(f"pass/{part}/{task.name}") for task in tasks}
        left = [task for task in tasks if facts[task.name] is None]
        files = {task.name: f"payloads/{part}/{task.name}" for task in left}
        calls = [(task, step, self.journal.path(files[task.name])) for task in left]
        results = self.run(code, calls)
        for place, found in results if quiet else track(results, f"code {len(left)} matrices", total=len(left)):
            name = left[place].name
            facts[name] = self.journal.done(f"pass/{part}/{name}", files[name], **found)
        return {name: each for name, each in facts.items() if each is not None}

    def allocate(
        self, tasks: list[MatrixTask], amounts: Amounts, room_bytes: float, behind_coded: Walk | None = None
    ) -> tuple[dict[str, dict[str, Any]], float, float]:
        """Code all matrices at the step that meets the target (see `allocate.allocate`).

        Args:
            tasks: Of all of them.
            amounts: What the target counts.
            room_bytes: About what the matrices may take.
            behind_coded: The calibration, if moments of inputs are to be those behind coded layers.

        Returns:
            The facts of each matrix (see `tasks.code`) with its `file`, the step, and about d log(size) / d log(step) there.

        Raises:
            InputError: The target cannot be met.
        """
        step, slope = self.first_step(tasks, amounts, room_bytes)
        if behind_coded is not None:
            first = step
            tasks = propagate(behind_coded, tasks, lambda some: self.code_all(some, 0, first))
        points: list[tuple[float, float]] = []
        best: tuple[int, float] | None = None
        size = 0
        for number in range(PASSES):
            summary = self.journal.recall(f"passed/{number}")
            if summary is None:
                facts = self.code_all(tasks, number, step)
                summary = self.journal.done(f"passed/{number}", size=amounts.total(facts), step=step)
            size = summary["size"]
            worse = number
            if size <= amounts.target and (best is None or step < best[1]):
                worse, best = (best[0] if best is not None else None), (number, step)
            if worse is not None:
                self._forget(tasks, worse)
            if amounts.target * (1 - TOLERANCE) <= size <= amounts.target:
                break
            points.append((math.log(step), math.log(size / amounts.target)))
            goal = math.log(1 - TOLERANCE / 2)
            if len(points) == 1 and slope != -1.0:
                step = math.exp(points[0][0] + max(-1.0, min(1.0, (goal - points[0][1]) / slope)))
            else:
                step = math.exp(next_point(points, goal))
        if best is None:
            raise InputError(
                f"the target of {amounts.target} cannot be met: it still takes {size} at the largest step tried; raise --size"
            )
        return self.code_all(tasks, *best), best[1], slope_through(points, slope)

    def correct(
        self, walk: Walk, tasks: list[MatrixTask], amounts: Amounts, plan: tuple[dict[str, dict[str, Any]], float, float]
    ) -> dict[str, dict[str, Any]]:
        """Code the layers again, each behind the coded ones before it (see `correct_streamed`).

        Args:
            walk: The calibration, done.
            tasks: Of all matrices.
            amounts: What the target counts.
            plan: What `allocate` returned.

        Returns:
            The facts of each matrix.
        """
        facts, step, slope = plan
        budget = Budget(amounts.total, amounts.target, slope, step, facts)
        by_name = {task.name: task for task in tasks}
        return StreamedCorrection(walk, by_name, budget, lambda some, part, at: self.code_all(some, part, at, quiet=True)).run()

    def _forget(self, tasks: list[MatrixTask], number: int) -> None:
        """Remove payloads that are not the best any more."""
        for task in tasks:
            self.journal.path(f"payloads/{number}/{task.name}").unlink(missing_ok=True)

    def write(self, facts: dict[str, dict[str, Any]], out: Path) -> None:
        """The model folder: shards, configuration, tokenizer."""
        skeleton = self.skeleton
        skeleton.compute_on(CPU)
        model = skeleton.model
        rest = {name: tensor.clone() for name, tensor in uncoded(model).items()}
        convert_to_sizes(model, {name: each["bytes"] for name, each in facts.items()}, skeleton.tied)
        payloads = {name.replace(".matrices.", "."): name for name in model.state_dict() if name.endswith(".payload")}
        files = {}
        for name, each in facts.items():
            place = skeleton.layers[name]
            key = f"{name}.payload" if place.index is not None else f"{name}.matrix.payload"
            files[payloads[key]] = self.journal.path(each["file"]), each["bytes"]
        dropped = set(getattr(model, "all_tied_weights_keys", None) or {})
        tensors = []
        for name in model.state_dict():
            if name in files:
                path, size = files[name]
                tensors.append(Stored(name, torch.uint8, (size,), path))
            elif name not in dropped:
                tensor = stored_as(rest[name], skeleton.dtype)
                tensors.append(Stored(name, tensor.dtype, tuple(tensor.shape), tensor))
        write_streamed_shards(tensors, out)
        model.config.dtype = skeleton.dtype
        model.config.save_pretrained(out)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(out)
        load_tokenizer(self.folder).save_pretrained(out)
        finish_folder(out, trust_index=True)

    def picture(self, tasks: list[MatrixTask], facts: dict[str, dict[str, Any]]) -> tuple[MatrixTask, Any] | None:
        """The matrix with the most tiles among those that are not too large, and what is stored of it."""
        small = [task for task in tasks if math.prod(task.shape) <= PICTURE_NUMBERS]
        if not small:
            return None
        short = self.tiling[1]
        chosen = max(small, key=lambda task: facts[task.name]["num_tiles"] if min(task.shape) > short else 0)
        data = self.journal.path(facts[chosen.name]["file"]).read_bytes()
        return chosen, unpack(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def stored_as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the checkpoint's dtype where that is exact (see `load.storage_dtypes`)."""
    if not tensor.is_floating_point():
        return tensor
    smaller = tensor.to(dtype)
    return smaller if torch.equal(smaller.to(tensor.dtype), tensor) else tensor
