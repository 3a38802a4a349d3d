"""Parameters a second: our coding against whitened full SVD of the same matrices, at the same stored bytes.

    OMP_NUM_THREADS=2 python benchmarks/speed.py [--shapes 2048x2048 4096x4096] [--threads 1 2] [--repeats 3] [--bits 4]

Weights are normal, inputs correlated: their second moment has eigenvalues 1/k in a random-looking basis
and channels of uneven size; it is given to both sides, as is the mean square of the output gradients.

- **best**: scale, trellis of 8 states with Cholesky feedback, entropy coding, bytes (`encode_matrix` and `pack`), once, at
  a step whose bytes are close below `--bits` a weight; finding that step is not timed (`compress` codes
  a matrix about three times while it looks for the step of the whole model).
- **plain**: the same without the trellis, which `compress --set trellis=1` does.
- **paper**: rank blocks on a Penrose tiling, DCT, likewise.
- **SVD**: the way of SVD-LLM: Cholesky of the second moment, full SVD of W L, truncation, L undone. Its
  factors are then stored in 16 or 8 bits (a scale a column) at as many bytes as `best` took. Single precision, as its
  authors do it; neither quantisation nor storage is timed.

Sides take turns, repeat by repeat, in one process; ratios are taken repeat by repeat, of wall time and of processor time
(which a busy machine spoils less). Distortion is
the whitened relative error `||E L||^2 / ||W L||^2` with undamped second moments; all output gradients are one, which
is what SVD assumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from quasitile.codec.block import CodedMatrix
from quasitile.codec.coding import Coding
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack
from quasitile.codec.spectrum import basis
from quasitile.codec.tiling import TILINGS
from quasitile.progress import table

SIDES = {
    "best": ("fibonacci", Coding(residual="identity", num_states=8)),
    "plain": ("fibonacci", Coding(residual="identity")),
    "paper": ("penrose", Coding(transform="dct", threshold=0.55)),
}


def problem(num_rows: int, num_columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (M, N), the second moment (N, N) of its inputs, and the mean squares (M,) of its output gradients."""
    generator = torch.Generator().manual_seed(seed)
    vectors = basis("dct", num_columns, torch.float32) * torch.randn(num_columns, generator=generator).sign()
    moment = (vectors.T / torch.arange(1, num_columns + 1)) @ vectors
    channels = torch.exp(0.5 * torch.randn(num_columns, generator=generator))
    moment = moment * channels * channels[:, None]
    weight = torch.randn(num_rows, num_columns, generator=generator) / num_columns**0.5
    return weight, moment / moment.diagonal().mean(), torch.ones(num_rows)


def distortion(weight: Tensor, restored: Tensor, moment: Tensor) -> float:
    """`||E L||^2 / ||W L||^2`, undamped."""
    error = weight - restored
    return float(((error @ moment) * error).sum() / ((weight @ moment) * weight).sum())


def whitened_full_svd(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """All of U sqrt(S) (M, K) and V sqrt(S) (K, N) of the whitened matrix, whitening undone."""
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))
    lower = torch.linalg.cholesky(damped)
    left, values, right = torch.linalg.svd(weight @ lower, full_matrices=False)
    right = torch.linalg.solve_triangular(lower, right, upper=False, left=False)
    return left * values.sqrt(), values.sqrt()[:, None] * right


def rounded(factors: Tensor, bits: int) -> Tensor:
    """Components (rows) in 16-bit floats, or in whole numbers of `bits` with a scale a component."""
    if bits == 16:
        return factors.to(torch.bfloat16).float()
    scale = factors.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (factors / scale).round() * scale


def svd_distortion(weight: Tensor, moment: Tensor, factors: tuple[Tensor, Tensor], num_bytes: int, bits: int) -> float:
    """Of the factors cut to the rank that these bytes hold."""
    rank = int(8 * num_bytes / (bits * sum(weight.shape)))
    left, right = factors
    return distortion(weight, rounded(left[:, :rank].T, bits).T @ rounded(right[:rank], bits), moment)


def seconds(work: Callable[[], Any]) -> tuple[list[float], Any]:
    """Wall and processor seconds, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return [time.perf_counter() - wall, time.process_time() - processor], result


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


@dataclass
class Case:
    """One matrix, and how a side codes it at a step of its own."""

    weight: Tensor
    moment: Tensor
    gradients: Tensor

    def code(self, side: str, step: float, num_rows: int) -> tuple[CodedMatrix, Tensor]:
        """The first rows, coded and packed."""
        layout, coding = SIDES[side]
        tiling = TILINGS[layout](num_rows, self.weight.shape[1], 96, 0)
        coded, _ = encode_matrix(self.weight[:num_rows], tiling, self.moment, self.gradients[:num_rows], step, coding)
        return coded, pack(coded)

    def step_for(self, side: str, bits: float, num_rows: int = 512) -> float:
        """A step with at most, and within 3 % of, so many bits a weight: by bisection on few rows, for all rows are alike."""
        few, low, high = min(num_rows, len(self.weight)), 1e-5, 10.0
        target = bits * few * self.weight.shape[1] / 8
        for _ in range(24):
            step = (low * high) ** 0.5
            size = self.code(side, step, few)[1].numel()
            if 0.97 * target <= size <= target:
                return step
            low, high = (low, step) if size < target else (step, high)
        return high

    def compare(self, side: str, result: tuple[CodedMatrix, Tensor], factors: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Bits a weight, and the errors of a side and of SVD at its bytes."""
        coded, payload = result
        found = {"bits": 8 * payload.numel() / self.weight.numel()}
        found["error"] = distortion(self.weight, decode_matrix(coded), self.moment)
        for bits in (16, 8):
            found[f"svd_error_{bits}"] = svd_distortion(self.weight, self.moment, factors, payload.numel(), bits)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["2048x2048", "8192x2048", "4096x4096", "14336x4096"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bits", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("speed.jsonl"))
    args = parser.parse_args()
    screen, rows = Console(width=150), []
    for shape in args.shapes:
        case = Case(*problem(*map(int, shape.split("x")), args.seed))
        num_rows = len(case.weight)
        torch.set_num_threads(1)
        work: dict[str, Callable[[], Any]] = {"SVD": partial(whitened_full_svd, case.weight, case.moment)}
        work |= {side: partial(case.code, side, case.step_for(side, args.bits), num_rows) for side in args.sides}
        for threads in args.threads:
            torch.set_num_threads(threads)
            times: dict[str, list[list[float]]] = {name: [] for name in work}
            results: dict[str, Any] = {}
            for _ in range(args.repeats):
                for name in work:
                    taken, results[name] = seconds(work[name])
                    times[name].append(taken)
            for side in args.sides:
                pairs = list(zip(times["SVD"], times[side], strict=True))
                line = {"shape": shape, "threads": threads, "side": side, "times": times[side], "svd_times": times["SVD"]}
                line |= case.compare(side, results[side], results["SVD"])
                with args.out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(line) + "\n")
                rows.append(
                    (
                        shape, threads, side, spread([own[0] for _, own in pairs]), spread([svd[0] for svd, _ in pairs]),
                        f"{case.weight.numel() / statistics.median(own[1] for _, own in pairs) / 1e6:.2f}",
                        spread([svd[0] / own[0] for svd, own in pairs]), spread([svd[1] / own[1] for svd, own in pairs]),
                        f"{line['bits']:.2f}", *(f"{line[key]:.5f}" for key in ("error", "svd_error_16", "svd_error_8")),
                    )
                )  # fmt: skip
                screen.print(*rows[-1], style="dim")
    headers = (
        "shape", "threads", "side", "wall s", "SVD's", "M weights/CPU s", "times faster", "by CPU time", "bits", "error",
        "SVD 16", "SVD 8",
    )  # fmt: skip
    screen.print(table("median (least-most)", headers, rows))


if __name__ == "__main__":
    main()
