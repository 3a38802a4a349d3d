"""Damage at equal stored bytes, without any training: every way of coding at every size, over calibration seeds.

    python benchmarks/quality.py MODEL --text TRAIN.jsonl --general TEST.jsonl [--bits 4 3 2 1] [--seeds 3] [--only best paper]

`--bits` are stored bits an original weight, everything in the file counted. A seed draws other
calibration text and other labels. Damage is the rise of the loss on `--general` over the original, in
nats a token; mean and half the width of the 95 % interval. Writes a JSON line a run to `--out`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from codec import interval  # the benchmark beside this one
from quasitile import load_model
from quasitile.codec.matrix import Coding, decode_matrix
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Job, allocate
from quasitile.compress.calibrate import calibrate, compressible_layers
from quasitile.compress.text import read_texts, token_windows
from quasitile.evaluate import text_loss
from quasitile.progress import set_quiet, table
from quasitile.recipe import resolve

RESIDUAL = Coding(residual="identity")
VARIANTS: dict[str, tuple[str, Coding]] = {
    "best": ("fibonacci", RESIDUAL),
    "paper": ("penrose", Coding(transform="dct", threshold=0.55)),
    "residual, penrose": ("penrose", RESIDUAL),
    "residual, grid": ("grid", RESIDUAL),
    "residual, one tile": ("whole", RESIDUAL),
    "residual, rows alike": ("fibonacci", Coding(residual="identity", row_damping=1.0)),
    "residual + rank 4": ("fibonacci", Coding(residual="identity", max_rank=4, threshold=0.55)),
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--windows", type=int, default=96)
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
    found = defaultdict(list)
    for seed in range(args.seeds):
        windows = token_windows(tokenizer, texts, 256, args.windows, seed)
        moments = calibrate(model, windows, 8, seed)
        for name in args.only:
            tiling, coding = VARIANTS[name]
            jobs = [
                Job(layer, weight, TILINGS[tiling](*weight.shape, 96, seed), moments[layer])
                for layer, weight in original.items()
            ]
            for bits in args.bits:
                started = time.monotonic()
                target = int(bits * num_parameters / 8)
                measure = lambda coded: rest + sum(result.payload.numel() + 140 for result in coded.values())  # noqa: E731
                coded, step = allocate(jobs, coding, measure, target, 2)
                for layer, result in coded.items():
                    layers[layer].weight.data.copy_(decode_matrix(result.matrix))
                damage = text_loss(model, tokenizer, general, max_tokens=args.tokens)["nats_per_token"] - reference
                for layer, weight in original.items():
                    layers[layer].weight.data.copy_(weight)
                found[name, bits].append(damage)
                line = {
                    "variant": name, "bits": bits, "seed": seed, "stored_bytes": measure(coded), "damage_nats": damage,
                    "predicted_nats": sum(result.damage_nats for result in coded.values()), "step": step,
                    "seconds": round(time.monotonic() - started, 1),
                }  # fmt: skip
                with args.out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(line) + "\n")
    rows = [(name, *(interval(found[name, bits]) for bits in args.bits)) for name in args.only]
    headings = ("variant", *(f"{bits:g} bits" for bits in args.bits))
    screen.print(table(f"damage in nats a token, {args.seeds} seeds", headings, rows))


if __name__ == "__main__":
    main()
