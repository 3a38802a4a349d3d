"""One rounding step for the whole model, chosen so that the stored bytes meet the target.

Rows and columns are scaled so that one step makes every stored number cost the same damage
(reverse water-filling); ranks follow from it (`factors.kept_rank`). So one number, found by
bisection, decides every rank, every cut-off and every bit width at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from quasitile.codec.block import CodedMatrix, Tiling
from quasitile.codec.factors import damped_cholesky, encode_matrix, kept_rank, scale_codes, scale_values, whitened_svd
from quasitile.codec.packing import pack
from quasitile.compress.calibrate import Moments
from quasitile.errors import InputError
from quasitile.progress import track

TOLERANCE = 0.01  # the target is met within this and never exceeded


@dataclass(frozen=True)
class Job:
    """One matrix to code.

    Attributes:
        name: Of its layer.
        weight: (M, N) float32.
        tiling: Its tiles.
        moments: From calibration.
    """

    name: str
    weight: Tensor
    tiling: Tiling
    moments: Moments


@dataclass(frozen=True)
class Coding:
    """How matrices are coded: the arguments of `encode_matrix` that are the same for all."""

    transform: str
    threshold: float
    max_rank: int | None
    price: float
    feedback: bool


@dataclass
class Coded:
    """The result for one matrix."""

    matrix: CodedMatrix
    payload: Tensor
    damage_nats: float

    @property
    def num_numbers(self) -> int:
        """Stored numbers: coefficients, and the scales of components, rows and columns."""
        return sum(b.left.numel() + b.right.numel() + b.rank for b in self.matrix.blocks) + sum(self.matrix.tiling.shape)


def in_threads(function: Callable, items: list, workers: int, description: str) -> list:
    """`[function(item) for item in items]` in threads of one core each, in order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small decompositions only lose by being split
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(track(pool.map(function, items), description, total=len(items)))
    finally:
        torch.set_num_threads(threads)


def encode_all(jobs: list[Job], coding: Coding, step: float, workers: int) -> dict[str, Coded]:
    """Every matrix at one step."""

    def encode(job: Job) -> Coded:
        matrix, damage = encode_matrix(
            job.weight,
            job.tiling,
            job.moments.inputs,
            job.moments.outputs,
            step,
            coding.transform,
            coding.threshold,
            coding.max_rank,
            coding.price,
            coding.feedback,
        )
        return Coded(matrix, pack(matrix), damage)

    results = in_threads(encode, jobs, workers, f"code {len(jobs)} matrices")
    return {job.name: result for job, result in zip(jobs, results, strict=True)}


def allocate(
    jobs: list[Job], coding: Coding, measure: Callable[[dict[str, Coded]], int], target: int, workers: int, passes: int = 6
) -> tuple[dict[str, Coded], float]:
    """Code all matrices at the step that meets the target.

    Args:
        jobs: The matrices.
        coding: How they are coded.
        measure: What the target counts (bytes, or numbers) of a set of coded matrices, everything
            else in the model included.
        target: Not to be exceeded.
        workers: Threads.
        passes: Limit on how often everything is coded.

    Returns:
        The coded matrices and the step.

    Raises:
        InputError: The target is below what the model takes with every block at rank 0.
    """
    empty = encode_all(jobs, coding, math.inf, workers)
    least = measure(empty)
    if least > target:
        raise InputError(
            f"the target of {target} cannot be met: with every block empty the model still takes {least}; raise --size"
        )
    spectra = in_threads(tile_spectra, jobs, workers, "decompose tiles")
    estimate = [entry for entries in spectra for entry in entries]
    step = solve(lambda x: least + estimated_bytes(estimate, x, coding.price), target * (1 - TOLERANCE / 2))
    best: tuple[dict[str, Coded], float] = (empty, math.inf)
    points: list[tuple[float, float]] = []
    for _ in range(passes):
        coded = encode_all(jobs, coding, step, workers)
        size = measure(coded)
        if size <= target and step < best[1]:
            best = coded, step
        if target * (1 - TOLERANCE) <= size <= target:
            break
        points.append((math.log(step), math.log(size / target)))
        step = math.exp(next_point(points, math.log(1 - TOLERANCE / 2)))
    return best


def next_point(points: list[tuple[float, float]], goal: float) -> float:
    """The next log-step to try: by the secant through the two latest points, at first by slope -1.

    Args:
        points: (log of step, log of size over target).
        goal: The wanted second coordinate.
    """
    (x, y) = points[-1]
    slope = -1.0
    if len(points) > 1 and points[-2][0] != x:
        slope = min(-0.1, (y - points[-2][1]) / (x - points[-2][0]))
    return x + max(-1.0, min(1.0, (goal - y) / slope))


def tile_spectra(job: Job) -> list[tuple[Tensor, Tensor, tuple[int, int], float]]:
    """Singular values, norms of V, shape and mean moment of each whitened tile of a matrix."""
    rows = scale_values(scale_codes(job.moments.outputs.double().sqrt())).double()
    columns = scale_values(scale_codes(job.moments.inputs.double().diagonal().sqrt())).double()
    scaled = job.weight.double() * rows[:, None] * columns
    lower = damped_cholesky(job.moments.inputs.double() / columns / columns[:, None])
    entries = []
    for tile in job.tiling.tiles:
        inner = lower[tile.columns, tile.columns]
        _, values, right = whitened_svd(scaled[tile.rows, tile.columns], inner)
        entries.append((values, right.norm(dim=0), tile.shape, float(inner.square().sum()) / tile.shape[1]))
    return entries


def estimated_bytes(spectra: list[tuple[Tensor, Tensor, tuple[int, int], float]], step: float, price: float) -> float:
    """About the bytes that all tiles take at a step, from their spectra alone."""
    return sum(kept_rank(values, norms, shape, step, moment, price)[1] for values, norms, shape, moment in spectra) / 8


def solve(size_at: Callable[[float], float], target: float) -> float:
    """The step at which a falling function of it meets the target, by bisection of the exponent."""
    low, high = -40.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if size_at(2.0**middle) > target else (low, middle)
    return 2.0**high
