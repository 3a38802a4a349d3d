"""How long a compression takes and what it holds, from shapes alone and two measured rates.

M rows, N columns, T calibration tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from quasitile.codec.coding import Coding
from quasitile.codec.matrix import encode_matrix
from quasitile.codec.packing import pack
from quasitile.codec.tiling import TILINGS

PASSES = 3  # how often a matrix is coded until the size is met (2 to 6; docs/results/speed.md)
HELD_BYTES_A_WEIGHT = 28  # float32 weights, then their gradients or two sets of codes with their remainders
BASE_BYTES = 500_000_000  # the interpreter and its libraries


@dataclass(frozen=True)
class Rates:
    """What one core does in a second.

    Attributes:
        flops: In large float32 products.
        weights: Weights scaled, rounded, entropy-coded and packed, large products not counted.
    """

    flops: float
    weights: float


# One core of a Xeon with AVX-512: `quasitile inspect MODEL --measure` on an idle machine (docs/results/speed.md).
USUAL = Rates(flops=40e9, weights=3e6)


@dataclass(frozen=True)
class Load:
    """One matrix as `compress` meets it.

    Attributes:
        shape: (M, N).
        share: Of the tokens that pass through it: less than 1 for an expert.
        layer: The decoder layer it is in, or nothing.
    """

    shape: tuple[int, int]
    share: float
    layer: str | None


@dataclass(frozen=True)
class Cost:
    """What a compression is predicted to take.

    Attributes:
        calibration_seconds: Forward, backward, and second moments.
        coding_seconds: All passes over all matrices.
        peak_memory_bytes: With the whole model in memory.
        streamed_memory_bytes: With one decoder layer at a time: weights, gradients and second moments of the largest.
    """

    calibration_seconds: float
    coding_seconds: float
    peak_memory_bytes: int
    streamed_memory_bytes: int


def product_flops(shape: tuple[int, int]) -> float:
    """Of coding a matrix once: handing errors on (M N^2), and the Cholesky factor (N^3 / 3, at half the speed)."""
    rows, columns = shape
    return rows * columns**2 + 2 / 3 * columns**3


def coding_seconds(shape: tuple[int, int], rates: Rates) -> float:
    """To code a matrix once on one core."""
    return product_flops(shape) / rates.flops + shape[0] * shape[1] / rates.weights


def predict(loads: Iterable[Load], num_tokens: int, rates: Rates, cores: int) -> Cost:
    """Time and memory of `compress` with a residual alone (the default).

    Args:
        loads: All matrices.
        num_tokens: Of calibration.
        rates: Of one core.
        cores: That work side by side.
    """
    calibration = coding = 0.0
    weights = moments = 0
    layers: dict[str | None, int] = {}
    seconds: dict[tuple[int, int], float] = {}
    for load in loads:
        rows, columns = load.shape
        calibration += num_tokens * load.share * (6 * rows * columns + 2 * columns**2) / rates.flops
        if load.shape not in seconds:
            seconds[load.shape] = coding_seconds(load.shape, rates)
        coding += seconds[load.shape]
        weights += rows * columns
        moments += columns**2
        layers[load.layer] = layers.get(load.layer, 0) + 8 * rows * columns + 4 * columns**2
    inside = [held for layer, held in layers.items() if layer is not None] or list(layers.values()) or [0]
    return Cost(
        calibration / cores,
        PASSES * coding / cores,
        BASE_BYTES + HELD_BYTES_A_WEIGHT * weights + 4 * moments,
        BASE_BYTES + max(inside),
    )


def measure(shape: tuple[int, int] = (2048, 2048), seed: int = 0) -> Rates:
    """The rates of this machine: one product, and one synthetic matrix coded, each the best of three on one core.

    In processor time, so that other programs spoil it less.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = torch.randn(shape, generator=generator), torch.randn(shape[1], shape[1], generator=generator)
    moment, outputs = inputs @ inputs.T / shape[1] + torch.eye(shape[1]), torch.rand(shape[0], generator=generator)
    tiling, coding = TILINGS["fibonacci"](*shape, 96, 0), Coding(residual="identity", num_states=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        product = min(_seconds(lambda: weight @ moment) for _ in range(3))
        flops = 2 * shape[0] * shape[1] ** 2 / product
        coded = min(_seconds(lambda: pack(encode_matrix(weight, tiling, moment, outputs, 0.5, coding)[0])) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    rest = max(coded - product_flops(shape) / flops, 0.1 * coded)
    return Rates(flops, shape[0] * shape[1] / rest)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
