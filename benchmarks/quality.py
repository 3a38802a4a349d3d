"""Damage at equal stored bytes, without any training: every way of coding at every size, over calibration seeds.

    python benchmarks/quality.py MODEL --text TRAIN.jsonl --general TEST.jsonl [--bits 4 3 2 1] [--seeds 3] [--only best paper]

`--gptq` adds GPTQ at these fixed rates (groups of 64, every matrix, the embedding too) and `best` at the bytes it takes.
`--bits` are stored bits an original weight, everything in the file counted. A seed draws other
calibration text and other labels. Damage is the rise of the loss on `--general` over the original, in
nats a token; mean and half the width of the 95 % interval. Writes a JSON line a run to `--out`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from torch import Tensor

from codec import interval  # the benchmark beside this one
from quasitile import load_model
from quasitile.baselines import gptq
from quasitile.codec.matrix import Coding, decode_matrix
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Coded, Job, allocate
from quasitile.compress.calibrate import Moments, calibrate, compressible_layers
from quasitile.compress.text import read_texts, token_windows
from quasitile.evaluate import text_loss
from quasitile.progress import set_quiet, table
from quasitile.recipe import resolve

RESIDUAL = Coding(residual="identity", num_states=8)
VARIANTS: dict[str, tuple[str, Coding]] = {
    "best": ("fibonacci", RESIDUAL),
    "paper": ("penrose", Coding(transform="dct", threshold=0.55)),
    "residual, penrose": ("penrose", RESIDUAL),
    "residual, grid": ("grid", RESIDUAL),
    "residual, one tile": ("whole", RESIDUAL),
    "residual, 32 states": ("fibonacci", replace(RESIDUAL, num_states=32)),
    "residual, no trellis": ("fibonacci", replace(RESIDUAL, num_states=1)),
    "residual, rows alike": ("fibonacci", replace(RESIDUAL, row_damping=1.0)),
    "residual + rank 4": ("fibonacci", replace(RESIDUAL, max_rank=4, threshold=0.55)),
    "spectral residual, DCT": ("fibonacci", Coding(residual="dct")),
    "spectral residual, random basis": ("fibonacci", Coding(residual="random")),
    "factors, grid": ("grid", Coding(transform="dct", threshold=0.55)),
    "factors, no transform": ("penrose", Coding(transform="identity", threshold=0.55)),
    "factors, whole matrix": ("whole", Coding(transform="identity")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded:base")
    parser.add_argument("--text", required=True)
    parser.add_argument("--general", required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2, 1])
    parser.add_argument("--gptq", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20000, help="of the general text that is scored")
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    args = parser.parse_args()
    set_quiet(True)
    screen = Console()
    model, tokenizer = load_model(resolve(args.model))
    texts, general = read_texts(args.text), read_texts(args.general)
    layers, _ = compressible_layers(model)
    original = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rest = sum(2 * p.numel() + 140 for n, p in model.named_parameters() if n.removesuffix(".weight") not in layers) + 200
    reference = text_loss(model, tokenizer, general, max_tokens=args.tokens)["nats_per_token"]
    screen.print(f"{num_parameters:,} parameters, original {reference:.4f} nats a token", style="dim")
    found: defaultdict[tuple[str, float], list[float]] = defaultdict(list)

    def measure(coded: dict[str, Coded]) -> int:
        return rest + sum(result.payload.numel() + 140 for result in coded.values())

    def damage_of(weights: dict[str, Tensor]) -> float:
        for name, weight in weights.items():
            layers[name].weight.data.copy_(weight)
        damage = text_loss(model, tokenizer, general, max_tokens=args.tokens)["nats_per_token"] - reference
        for name, weight in original.items():
            layers[name].weight.data.copy_(weight)
        return damage

    def record(variant: str, bits: float, seed: int, num_bytes: int, damage: float, **more: float) -> None:
        found[variant, bits].append(damage)
        line = {"variant": variant, "bits": bits, "seed": seed, "stored_bytes": num_bytes, "damage_nats": damage, **more}
        with args.out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    def run(variant: str, label: str, bits: float, target: int, seed: int, moments: dict[str, Moments]) -> None:
        tiling, coding = VARIANTS[variant]
        jobs = [Job(name, weight, TILINGS[tiling](*weight.shape, 96, seed), moments[name]) for name, weight in original.items()]
        coded, step = allocate(jobs, coding, measure, target, args.workers)
        damage = damage_of({name: decode_matrix(result.matrix) for name, result in coded.items()})
        predicted = sum(result.damage_nats for result in coded.values())
        record(label, bits, seed, measure(coded), damage, predicted_nats=predicted, step=step)

    for seed in range(args.seeds):
        moments = calibrate(model, token_windows(tokenizer, texts, 256, args.windows, seed), 8, seed)
        for bits in args.gptq:
            results = {name: gptq(weight, moments[name].inputs, bits) for name, weight in original.items()}
            num_bytes = rest + round(sum(stored * original[name].numel() / 8 for name, (_, stored) in results.items()))
            record("GPTQ", bits, seed, num_bytes, damage_of({name: rounded for name, (rounded, _) in results.items()}))
            run("best", "best at GPTQ's bytes", bits, num_bytes, seed, moments)
        for variant in args.only:
            for bits in args.bits:
                run(variant, variant, bits, int(bits * num_parameters / 8), seed, moments)
    variants = dict.fromkeys(variant for variant, _ in found)
    sizes = sorted({bits for _, bits in found}, reverse=True)
    rows = [(v, *(interval(found[v, bits]) if (v, bits) in found else "" for bits in sizes)) for v in variants]
    headings = ("variant", *(f"{bits:g} bits" for bits in sizes))
    screen.print(table(f"damage in nats a token, {args.seeds} seeds", headings, rows))


if __name__ == "__main__":
    main()
