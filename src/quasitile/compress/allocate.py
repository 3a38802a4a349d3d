"""One rounding step for the whole model, chosen so that the stored bytes meet the target.

Rows and columns are scaled so that one step makes every stored number cost the same damage
(reverse water-filling); ranks follow from it (`factors.kept_rank`). So one number, found by
bisection, decides every rank, every cut-off and every bit width at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quasitile.codec.axes import Axes
from quasitile.codec.block import CodedMatrix, Tiling
from quasitile.codec.coding import Coding
from quasitile.codec.factors import kept_rank, rounded_normal_bits, whitened_svd
from quasitile.codec.matrix import damage_nats, decode_matrix, encode_matrix, scaled
from quasitile.codec.packing import pack
from quasitile.codec.structure import Structure
from quasitile.codec.trellis import trellis_normal_bits
from quasitile.compress.calibrate import Moments
from quasitile.errors import InputError
from quasitile.progress import track

# Singular values, norms of V, shape, mean moment and fixed rank of a tile, for `factors.kept_rank`.
Spectrum = tuple[Tensor, Tensor, tuple[int, int], float, int | None]
TOLERANCE = 0.01  # the target is met within this and never exceeded
CLOSE, GOOD_ENOUGH = 0.004, 3  # within this nothing more is tried; after so many passes, within the tolerance


@dataclass(frozen=True)
class Job:
    """One matrix to code.

    Attributes:
        name: Of its layer.
        weight: (M, N) float32.
        tiling: The tiles of what is stored.
        moments: From calibration.
        structure: Which weights share a number, or nothing where all have their own.
        axes: What its columns are turned to, where that is not for `Coding` to say.
    """

    name: str
    weight: Tensor
    tiling: Tiling
    moments: Moments
    structure: Structure | None = None
    axes: Axes | None = None

    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix to code, and the moments of its inputs and outputs."""
        moments = self.moments.inputs, self.moments.outputs
        if self.structure is None:
            return self.weight, *moments
        return self.structure.project(self.weight), *self.structure.moments(*moments)


@dataclass
class Coded:
    """The result for one matrix."""

    matrix: CodedMatrix
    payload: Tensor
    damage_nats: float

    @property
    def num_numbers(self) -> int:
        """Stored numbers: factors' coefficients, non-zero residual codes, and the scales of components, rows and columns."""
        factors = sum(block.left.numel() + block.right.numel() + block.rank for block in self.matrix.blocks)
        residual = sum(int(block.residual.count_nonzero()) for block in self.matrix.blocks if block.residual is not None)
        return factors + residual + sum(self.matrix.tiling.shape)


@dataclass(frozen=True)
class Allocation:
    """All matrices coded at the step that meets the target.

    Attributes:
        coded: The matrices.
        step: Infinite for nothing at all.
        slope: About d log(size) / d log(step) there.
    """

    coded: dict[str, Coded]
    step: float
    slope: float


def in_threads(function: Callable, items: list, workers: int, description: str) -> list:
    """`[function(item) for item in items]` in threads of one core each, in order; silent without a description."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small decompositions only lose by being split
    try:
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(function, items)
            return list(track(results, description, total=len(items)) if description else results)
    finally:
        torch.set_num_threads(threads)


def encode_all(jobs: list[Job], coding: Coding, step: float, workers: int, quiet: bool = False) -> dict[str, Coded]:
    """Every matrix at one step."""

    def encode(job: Job) -> Coded:
        weight, inputs, outputs = job.stored()
        matrix, damage = encode_matrix(weight, job.tiling, inputs, outputs, step, coding, job.axes)
        if job.structure is not None:
            matrix = replace(matrix, structure=job.structure)
            damage = damage_nats(job.weight - decode_matrix(matrix), job.moments.inputs, job.moments.outputs)
        return Coded(matrix, pack(matrix), damage)

    results = in_threads(encode, jobs, workers, "" if quiet else f"code {len(jobs)} matrices")
    return {job.name: result for job, result in zip(jobs, results, strict=True)}


def allocate(
    jobs: list[Job], coding: Coding, measure: Callable[[dict[str, Coded]], int], target: int, workers: int, passes: int = 6
) -> Allocation:
    """Code all matrices at the step that meets the target.

    Args:
        jobs: The matrices.
        coding: How they are coded.
        measure: What the target counts (bytes, or numbers) of a set of coded matrices, everything
            else in the model included.
        target: Not to be exceeded.
        workers: Threads.
        passes: Limit on how often everything is coded.

    Raises:
        InputError: The target is below what the model takes with every block at rank 0.
    """
    empty = encode_all(jobs, coding, math.inf, workers)
    least = measure(empty)
    if least > target:
        raise InputError(
            f"the target of {target} cannot be met: with every block empty the model still takes {least}; raise --size"
        )
    room = target * (1 - CLOSE / 2) - least
    step, slope = first_step(jobs, coding, room, workers)
    slope *= room / target  # of everything that is counted
    best = Allocation(empty, math.inf, slope)
    points: list[tuple[float, float]] = []
    for number in range(passes):
        coded = encode_all(jobs, coding, step, workers)
        size = measure(coded)
        points.append((math.log(step), math.log(size / target)))
        if size <= target and step < best.step:
            best = Allocation(coded, step, slope_through(points, slope))
        if target * (1 - (CLOSE if number < GOOD_ENOUGH else TOLERANCE)) <= size <= target:
            break
        step = math.exp(next_point(points, math.log(1 - CLOSE / 2), slope))
    return best


def first_step(jobs: list[Job], coding: Coding, num_bytes: float, workers: int) -> tuple[float, float]:
    """About the step at which all tiles take so many bytes, and d log(bytes) / d log(step) there, from spectra alone."""
    if coding.residual is None:
        spectra = in_threads(lambda job: tile_spectra(job, coding), jobs, workers, "decompose tiles")
        estimate = [entry for entries in spectra for entry in entries]
        return solve_with_slope(lambda x: estimated_bytes(estimate, x, coding.price), num_bytes)
    spreads = in_threads(lambda job: sampled_spreads(job, coding), jobs, workers, "look at spreads")
    return solve_with_slope(lambda x: residual_bytes(spreads, x, coding), num_bytes)


def next_point(points: list[tuple[float, float]], goal: float, slope: float = -1.0) -> float:
    """The next log-step to try: by the secant through the two latest points.

    Args:
        points: (log of step, log of size over target).
        goal: The wanted second coordinate.
        slope: While there is one point only.
    """
    (x, y) = points[-1]
    return x + max(-1.0, min(1.0, (goal - y) / slope_through(points, slope)))


def slope_through(points: list[tuple[float, float]], slope: float) -> float:
    """Of the secant through the two latest points, or the one given while there is one point only; it falls in any case."""
    if len(points) > 1 and points[-2][0] != points[-1][0]:
        slope = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
    return min(-0.1, slope)


def sampled_spreads(job: Job, coding: Coding, count: int = 4096) -> tuple[Tensor, float]:
    """Root mean squares of a sample of a matrix' scaled entries (row times column), and how many entries each stands for."""
    weight = scaled(*job.stored(), coding).weight
    power = weight.square()
    rows, columns, mean = power.mean(1), power.mean(0), power.mean().clamp_min(1e-30)
    generator = torch.Generator().manual_seed(0)
    row, column = (torch.randint(size, (count,), generator=generator) for size in weight.shape)
    return (rows[row] * columns[column] / mean).sqrt(), weight.numel() / count


def residual_bytes(spreads: list[tuple[Tensor, float]], step: float, coding: Coding) -> float:
    """About the bytes that all residuals take at a step."""

    def bits(values: Tensor) -> Tensor:
        spread = values / step
        return rounded_normal_bits(spread) if coding.trellis == 1 else trellis_normal_bits(spread, coding.trellis)

    return sum(each * float(bits(values).sum()) for values, each in spreads) / 8


def tile_spectra(job: Job, coding: Coding) -> list[Spectrum]:
    """What `kept_rank` needs to know of each whitened tile of a matrix."""
    problem = scaled(*job.stored(), coding)
    entries = []
    for tile in job.tiling.tiles:
        inner = problem.lower[tile.columns, tile.columns]
        _, values, right = whitened_svd(problem.weight[tile.rows, tile.columns], inner, coding.svd, coding.max_rank)
        values, right = values[: coding.max_rank], right[:, : coding.max_rank]
        moment = float(inner.square().sum()) / tile.shape[1]
        entries.append((values, right.norm(dim=0), tile.shape, moment, coding.fixed_rank(tile.shape)))
    return entries


def estimated_bytes(spectra: list[Spectrum], step: float, price: float) -> float:
    """About the bytes that all tiles take at a step, from their spectra alone."""
    bits = (kept_rank(values, norms, shape, step, moment, price, fixed)[1] for values, norms, shape, moment, fixed in spectra)
    return sum(bits) / 8


def solve(size_at: Callable[[float], float], target: float) -> float:
    """The step at which a falling function of it meets the target, by bisection of the exponent."""
    low, high = -40.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if size_at(2.0**middle) > target else (low, middle)
    return 2.0**high


def solve_with_slope(size_at: Callable[[float], float], target: float) -> tuple[float, float]:
    """`solve`, and d log(size) / d log(step) there."""
    step = solve(size_at, target)
    near = size_at(step / 1.1), size_at(step * 1.1)
    return step, math.log(max(near[1], 1e-9) / max(near[0], 1e-9)) / (2 * math.log(1.1))


def describe_matrix(job: Job, coded: Coded, tiling: str) -> dict[str, Any]:
    """The summary's line about one matrix."""
    ranks = [block.rank for block in coded.matrix.blocks]
    codes = [block.codes() for block in coded.matrix.blocks]
    num_codes = sum(c.numel() for c in codes)
    error = job.weight - decode_matrix(coded.matrix)
    return {
        "name": job.name,
        "shape": list(job.weight.shape),
        "tiling": tiling,
        "num_tiles": len(ranks),
        "mean_rank": sum(ranks) / len(ranks),
        "max_rank": max(ranks),
        "stored_bytes": coded.payload.numel(),
        "bits_per_weight": 8 * coded.payload.numel() / job.weight.numel(),
        "relative_squared_error": float(error.square().sum() / job.weight.square().sum().clamp_min(1e-30)),
        "kept_share": sum(int((c != 0).sum()) for c in codes) / num_codes if num_codes else 0.0,
        "predicted_damage_nats": coded.damage_nats,
    }
