"""What each choice of the codec costs at equal stored bytes, and how fast coding is against whole-matrix SVD.

    python benchmarks/codec.py [--size 25%] [--seeds 3]

Compresses the embedded model with each tiling, with and without feedback, with each transform, at the
same stored bytes over several calibration seeds, without training, and prints the damage on the
package's held-out general text (mean and 95 % interval). Then times the coding of all matrices against
whitened full SVD of the same whole matrices, in the same process.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from quasitile import CompressSettings, SampleSettings, compress, load_model, sample
from quasitile.codec.factors import damped_cholesky, whitened_svd
from quasitile.codec.tiling import TILINGS
from quasitile.compress.calibrate import calibrate, compressible_layers
from quasitile.compress.text import read_texts, token_windows
from quasitile.evaluate import text_loss
from quasitile.progress import set_quiet, table
from quasitile.recipe import resolve

VARIANTS = {
    **{f"tiling {name}": {"tiling": {"name": name, "short": 96}} for name in TILINGS},
    "no feedback": {"feedback": False},
    "no transform": {"spectrum": {"transform": "identity"}},
    "random basis": {"spectrum": {"transform": "random"}},
    "fewer, finer components": {"rank_price": 8},
}


def interval(values: list[float]) -> str:
    """Mean and half the width of the 95 % interval (Student's t for three or more seeds)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    return f"{mean:.4f} ± {quantile * statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="25%")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    set_quiet(True)
    screen, base = Console(), resolve("embedded:base")
    general = read_texts(resolve("embedded:general.jsonl"))
    dense, tokenizer = load_model(base)
    reference = text_loss(dense, tokenizer, general)["nats_per_token"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            sample(base, Path(folder) / f"text{seed}", SampleSettings(num_texts=256, seed=seed))
        for name, changes in VARIANTS.items():
            damages, num_bytes = [], 0
            for seed in range(args.seeds):
                settings = CompressSettings.model_validate(
                    {"size": args.size, "seed": seed, "calibration": {"num_windows": 48}, **changes}
                )
                text = Path(folder) / f"text{seed}" / "samples.jsonl"
                num_bytes = compress(base, Path(folder) / "model", text=text, settings=settings)["stored_bytes"]
                model, _ = load_model(Path(folder) / "model")
                damages.append(text_loss(model, tokenizer, general)["nats_per_token"] - reference)
            rows.append((name, f"{num_bytes:,}", interval(damages)))
            screen.print(f"{name}: {rows[-1][2]} nats", style="dim")
        speed = coding_speed(dense, tokenizer, Path(folder) / "text0" / "samples.jsonl")
    screen.print(table(f"damage at {args.size}, {args.seeds} seeds", ("variant", "stored bytes", "damage, nats a token"), rows))
    screen.print(speed)


def coding_speed(dense: torch.nn.Module, tokenizer: object, text: Path) -> str:
    """Decomposing all tiles against decomposing the whole matrices, best of three each."""
    windows = token_windows(tokenizer, read_texts(text), 128, 8)
    moments = calibrate(dense, windows)
    layers, _ = compressible_layers(dense)

    def seconds(name: str) -> float:
        best = math.inf
        for _ in range(3):
            started = time.perf_counter()
            for layer_name, layer in layers.items():
                lower = damped_cholesky(moments[layer_name].inputs)
                weight = layer.weight.detach().double()
                for tile in TILINGS[name](*weight.shape, 96, 0).tiles:
                    whitened_svd(weight[tile.rows, tile.columns], lower[tile.columns, tile.columns])
            best = min(best, time.perf_counter() - started)
        return best

    tiles, whole = seconds("fibonacci"), seconds("whole")
    return f"decomposing tiles takes {tiles:.2f} s, whole matrices {whole:.2f} s: {whole / tiles:.1f} times as long"


if __name__ == "__main__":
    main()
