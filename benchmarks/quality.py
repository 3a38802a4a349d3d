"""Damage at equal stored bytes, without any training: every way of coding at every size, over calibration seeds.

    python benchmarks/quality.py MODEL --text TRAIN.jsonl --general TEST.jsonl [--bits 4 3 2 1] [--seeds 3] [--only best paper]

`--only` takes names of `VARIANTS` and of presets (docs/presets.md); `presets` stands for all of these. `--gptq` adds
GPTQ at these fixed rates (groups of 64, every matrix, the embedding too) and `best` at the bytes it takes. `--bits` are
stored bits an original weight, everything in the file counted: 4 is 25 % of bf16. A seed draws other calibration text
and other labels. Damage is the rise of the loss on `--general` over the original, in nats a token; mean and half the
width of the 95 % interval. Appends a JSON line a measurement to `--out` and does not repeat what stands there: a run
that was stopped goes on, and one with more seeds adds them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from codec import interval  # the benchmark beside this one
from quasitile import InputError, load_model, load_recipe
from quasitile.baselines import BASELINES, BaselineSettings, gptq
from quasitile.codec.matrix import decode_matrix
from quasitile.compress import CompressSettings
from quasitile.compress.allocate import Coded, allocate
from quasitile.compress.calibrate import Moments, calibrate
from quasitile.compress.modular import MODULES
from quasitile.compress.numbers import number_share
from quasitile.compress.pipeline import bytes_beside, coding_for, job_for
from quasitile.compress.text import read_texts, token_windows
from quasitile.evaluate import text_loss
from quasitile.progress import set_quiet, table
from quasitile.recipe import presets, resolve
from quasitile.runtime import compressible_layers

FACTORS = {"residual": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "best": {},
    "paper": {"tiling": {"name": "penrose"}, **FACTORS},
    "residual, penrose": {"tiling": {"name": "penrose"}},
    "residual, grid": {"tiling": {"name": "grid"}},
    "residual, one tile": {"tiling": {"name": "whole"}},
    "residual, 32 states": {"trellis": 32},
    "residual, no trellis": {"trellis": 1},
    "residual, rows alike": {"row_damping": 1.0},
    "residual + rank 4": {"max_rank": 4},
    "spectral residual, DCT": {"residual": "dct"},
    "spectral residual, random basis": {"residual": "random"},
    "factors, grid": {"tiling": {"name": "grid"}, **FACTORS},
    "factors, no transform": {"tiling": {"name": "penrose"}, "spectrum": {"transform": "identity"}, **FACTORS},
    "factors, whole matrix": {"tiling": {"name": "whole"}, "spectrum": {"transform": "identity", "threshold": 0.5}, **FACTORS},
}
Weights = dict[str, Tensor]


def settings_of(variant: str) -> CompressSettings | BaselineSettings:
    """Of a variant or a preset."""
    if variant in VARIANTS:
        return CompressSettings.model_validate(VARIANTS[variant])
    recipe = load_recipe(variant)
    return recipe.compress if recipe.baseline.name == "none" else recipe.baseline


class Bench:
    """A model whose matrices are replaced, measured and put back."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model, self.tokenizer = load_model(resolve(args.model))
        self.texts, self.general = read_texts(args.text), read_texts(args.general)
        self.layers, _ = compressible_layers(self.model)
        self.original = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.known_windows: dict[int, Tensor] = {}  # reading much text takes longer than coding a small model
        self.beside = bytes_beside(self.model, self.layers)
        self.reference = self.loss()

    def loss(self) -> float:
        """Of the model as it stands, in nats a token."""
        return text_loss(self.model, self.tokenizer, self.general, max_tokens=self.args.tokens)["nats_per_token"]

    def restore(self) -> None:
        """Put the original matrices back."""
        for name, weight in self.original.items():
            self.layers[name].weight.data.copy_(weight)

    def damage_of(self, weights: Weights) -> float:
        """The rise of the loss with these matrices."""
        for name, weight in weights.items():
            self.layers[name].weight.data.copy_(weight)
        damage = self.loss() - self.reference
        self.restore()
        return damage

    def windows(self, seed: int) -> Tensor:
        """Calibration text."""
        if seed not in self.known_windows:
            self.known_windows[seed] = token_windows(self.tokenizer, self.texts, 256, self.args.windows, seed)
        return self.known_windows[seed]

    def moments(self, seed: int) -> dict[str, Moments]:
        """Of the model as it stands."""
        return calibrate(self.model, self.windows(seed), 8, seed)

    def measured_bytes(self, coded: dict[str, Coded]) -> int:
        """Of the whole model."""
        return self.beside + sum(result.payload.numel() for result in coded.values())

    def coded(self, settings: Any, target: int, seed: int, moments: dict[str, Moments]) -> dict[str, Any]:
        """What `quasitile.compress` would store within so many bytes, measured in memory."""
        settings = settings.model_copy(update={"tiling": settings.tiling.model_copy(update={"seed": seed})})
        num_weights = sum(weight.numel() for weight in self.original.values())
        share = number_share(8 * (target - self.beside), settings.number_bits, num_weights)
        try:
            if settings.modules != "none":
                MODULES[settings.modules](self.model, moments, self.windows(seed), 8, share)
                moments = self.moments(seed)
            jobs = [job_for(name, layer, moments[name], settings, share) for name, layer in self.layers.items()]
            coded, step = allocate(jobs, coding_for(settings, share), self.measured_bytes, target, self.args.workers)
        finally:
            self.restore()
        damage = self.damage_of({name: decode_matrix(result.matrix) for name, result in coded.items()})
        predicted = sum(result.damage_nats for result in coded.values())
        size = self.measured_bytes(coded)
        return {"stored_bytes": size, "damage_nats": damage, "predicted_nats": predicted, "step": min(step, 1e300)}

    def baseline(self, settings: Any, target: int, seed: int, moments: dict[str, Moments]) -> dict[str, Any]:
        """A method in its own number format, at the nearest size that it can meet."""
        weights, num_bits = BASELINES[settings.name](self.original, moments, 8 * (target - self.beside), settings.group)
        return {"stored_bytes": self.beside + round(num_bits / 8), "damage_nats": self.damage_of(weights)}

    def gptq(self, bits: int, moments: dict[str, Moments]) -> dict[str, Any]:
        """GPTQ at a rate."""
        results = {name: gptq(weight, moments[name].inputs, bits) for name, weight in self.original.items()}
        num_bits = sum(stored * self.original[name].numel() for name, (_, stored) in results.items())
        damage = self.damage_of({name: rounded for name, (rounded, _) in results.items()})
        return {"stored_bytes": self.beside + round(num_bits / 8), "damage_nats": damage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded:base")
    parser.add_argument("--text", required=True)
    parser.add_argument("--general", required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2, 1])
    parser.add_argument("--gptq", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS, *presets(), "presets"], default=list(VARIANTS))
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20000, help="of the general text that is scored")
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    args = parser.parse_args()
    set_quiet(True)
    screen = Console()
    bench = Bench(args)
    variants = list(dict.fromkeys(v for only in args.only for v in (presets() if only == "presets" else [only])))
    screen.print(f"{bench.num_parameters:,} parameters, original {bench.reference:.4f} nats a token", style="dim")
    setup = {"model": args.model, "windows": args.windows, "tokens": args.tokens}
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    known = {(line["variant"], line["bits"], line["seed"]): line for line in lines if setup.items() <= line.items()}
    found: defaultdict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)

    def once(variant: str, bits: float, seed: int, measure: Callable[[dict[str, Moments]], dict[str, Any]]) -> dict[str, Any]:
        """Measure, unless that has been done; a size that a method cannot meet is kept with its reason."""
        if (variant, bits, seed) not in known:
            if seed not in moments:
                moments.clear()
                moments[seed] = bench.moments(seed)
            started = time.monotonic()
            try:
                result = measure(moments[seed])
            except InputError as error:
                result = {"refused": str(error)}
            line = {"variant": variant, "bits": bits, "seed": seed, **result, "seconds": time.monotonic() - started, **setup}
            known[variant, bits, seed] = line
            with args.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        found[variant, bits].append(known[variant, bits, seed])
        return known[variant, bits, seed]

    moments: dict[int, dict[str, Moments]] = {}
    for seed in range(args.seeds):
        for bits in args.gptq:
            target = once("GPTQ", bits, seed, partial(bench.gptq, bits))["stored_bytes"]
            once("best at GPTQ's bytes", bits, seed, partial(bench.coded, settings_of("best"), target, seed))
        for bits, variant in product(args.bits, variants):
            settings = settings_of(variant)
            measure = bench.baseline if isinstance(settings, BaselineSettings) else bench.coded
            once(variant, bits, seed, partial(measure, settings, int(bits * bench.num_parameters / 8), seed))
    sizes = sorted({bits for _, bits in found}, reverse=True)
    rows = [
        (v, *(cell(found.get((v, bits), []), bench.num_parameters) for bits in sizes))
        for v in dict.fromkeys(v for v, _ in found)
    ]
    headings = ("variant", *(f"{bits:g} bits" for bits in sizes))
    screen.print(table(f"damage in nats a token, {args.seeds} seeds", headings, rows))


def cell(lines: list[dict[str, Any]], num_parameters: int) -> str:
    """Mean and interval over seeds; with the bits taken where the size was missed by more than a hundredth."""
    damages = [line["damage_nats"] for line in lines if "damage_nats" in line]
    if not damages:
        return "refused" if lines else ""
    taken = 8 * lines[0]["stored_bytes"] / num_parameters
    return interval(damages) + (f" at {taken:.2f}" if taken < 0.99 * lines[0]["bits"] else "")


if __name__ == "__main__":
    main()
