"""Other programs' quantisation beside ours at the same stored bytes, without any training.

    python benchmarks/peers.py [MODEL] --text TRAIN.jsonl --general TEST.jsonl --environments DIR [--bits 4 3 2] [--seeds 3]

Makes a virtual environment a peer under DIR (several GB, once) and starts each peer in its own through `peer_run.py`, with
the calibration tokens that ours gets. All peers quantise the decoder's linear layers in groups of 64 and leave embedding and
head in 16 bits. Then `best` gets the same bytes for the whole model twice: with every matrix in its budget, and with
embedding and head left in 16 bits as the peers leave them, so that only the linear layers differ. Everything is
scored in this process. Writes a JSON line a measurement to `--out` and repeats none that is there.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from measure import Bench, Results, common_arguments, interval, markdown, recipe_of  # beside this file
from rich.console import Console
from safetensors.torch import load_file

from quasitile.folders import read_json

TORCH = "torch==2.13.0"  # first and alone, and a constraint on all else: a bare requirement would pull in a GPU build


@dataclass(frozen=True)
class Peer:
    """Another program.

    Attributes:
        environment: Folder of its virtual environment; peers may share one.
        packages: What is installed there.
        options: Of pip.
        bits: Rates that it has.
        calibrated: Whether it sees the text, so that seeds differ.
    """

    environment: str
    packages: tuple[str, ...]
    options: tuple[str, ...] = ()
    bits: tuple[int, ...] = (4, 3, 2)
    calibrated: bool = True


PEERS = {
    "GPTQ (llm-compressor)": Peer("llmcompressor", ("llmcompressor==0.14.0.1", "transformers==5.17.0")),
    "AutoRound, 200 iterations": Peer("autoround", ("auto-round==0.16.1",)),
    "AutoRound, 50 iterations": Peer("autoround", ("auto-round==0.16.1",)),
    "HQQ": Peer("hqq", ("hqq==0.2.8.post1",), ("--no-build-isolation",), calibrated=False),
}
WHOLE, LEFT = "ours, whole model", "ours, embedding left in 16 bits"


def make_environment(folder: Path, peer: Peer) -> Path:
    """The Python of a peer's environment, made if it is not there yet."""
    home = folder / peer.environment
    python, done = home / "bin" / "python", home / "installed"
    wanted = " ".join((TORCH, *peer.packages))
    if not done.exists() or done.read_text() != wanted:
        venv.create(home, with_pip=True)
        constraint = home / "constraints.txt"
        constraint.write_text(TORCH + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
        subprocess.run([*pip, TORCH, "numpy", "setuptools", "wheel"], check=True)
        without_gpu = os.environ | {"DISABLE_CUDA": "1", "BUILD_CUDA_EXT": "0"}
        subprocess.run([*pip, "-c", str(constraint), *peer.options, *peer.packages], check=True, env=without_gpu)
        done.write_text(wanted)
    return python


def run_peer(bench: Bench, name: str, python: Path, bits: int, seed: int, threads: int) -> dict[str, Any]:
    """Quantise in the peer's process; count and score in this one.

    Raises:
        RuntimeError: The peer failed; the end of its output is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        windows, out = Path(folder) / "windows.npy", Path(folder) / "weights"
        np.save(windows, bench.windows(seed).numpy())
        command = [str(python), str(Path(__file__).parent / "peer_run.py"), name, bench.location, str(windows), str(out)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, "--bits", str(bits), "--seed", str(seed)], env=environment, cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name} at {bits} bits failed:\n{(done.stdout + done.stderr)[-3000:]}")
        report, weights = read_json(out.with_suffix(".json")), load_file(out.with_suffix(".safetensors"))
    untouched = bench.num_parameters - sum(weight.numel() for weight in weights.values())
    return {
        "stored_bytes": sum(report["stored_bytes"].values()) + 2 * untouched,
        "linear_bytes": sum(report["stored_bytes"].values()),
        "linear_weights": sum(weight.numel() for weight in weights.values()),
        **bench.score_with(weights),
        "seconds": report["seconds"],
    }


def embedding_and_head(bench: Bench) -> list[str]:
    """The matrices that peers leave alone."""
    ends = (bench.model.get_input_embeddings(), bench.model.get_output_embeddings())
    return [name for name, place in bench.layers.items() if any(place.module is end for end in ends)]


def comparison(lines: list[dict[str, Any]], recipe: str, score: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows, a row a peer and rate: its bytes, its score, ours at no more bytes, and their ratio."""
    peers = [line for line in lines if line["variant"] in PEERS]
    rows = []
    for name, bits in dict.fromkeys((line["variant"], line["bits"]) for line in peers):
        theirs = [line for line in peers if (line["variant"], line["bits"]) == (name, bits)]
        num_bytes, damage = theirs[0]["stored_bytes"], [line[score] for line in theirs]
        cells = []
        for form in (WHOLE, LEFT):
            ours = [line for line in lines if line.get("form") == form and line["variant"] == recipe]
            target = max((line["target_bytes"] for line in ours if line["target_bytes"] <= num_bytes), default=0)
            found = [line[score] for line in ours if line["target_bytes"] == target]
            close = found and target > 0.95 * num_bytes
            cells += [interval(found), f"{fmean(found) / fmean(damage):.2f}"] if close else ["", ""]
        linear_bits = 8 * theirs[0]["linear_bytes"] / theirs[0]["linear_weights"]
        rows.append((name, f"{linear_bits:.2f}", f"{num_bytes:,}", interval(damage), *cells))
    theirs = f"its {score.removesuffix('_nats')}"
    return ("peer", "bits a linear weight", "bytes of the model", theirs, WHOLE, "ratio", LEFT, "ratio"), rows


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--against", nargs="*", choices=PEERS, default=list(PEERS), help="the peers whose bytes ours gets")
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--threads", type=int, default=1, help="of a peer's process")
    args = parser.parse_args()
    screen, results = Console(), Results(args.out)
    bench = Bench(args)
    recipe = recipe_of(args.recipe)
    forms = {WHOLE: recipe, LEFT: recipe | {"skip": embedding_and_head(bench)}}
    for seed in range(args.seeds):
        for name in args.peers:
            peer = PEERS[name]
            python = make_environment(args.environments.resolve(), peer)
            for bits in (b for b in args.bits if b in peer.bits):
                key = {**bench.setting, "variant": name, "bits": bits, "seed": seed if peer.calibrated else 0}
                theirs = results.once(key, lambda: run_peer(bench, name, python, bits, seed, args.threads))  # noqa: B023
                screen.print(f"{name}, {bits} bits, seed {seed}: {theirs['damage_nats']:.4f}", style="dim")
                for form, changes in forms.items() if name in args.against else ():
                    target = theirs["stored_bytes"]
                    key = {**bench.setting, "variant": args.recipe, "form": form, "target_bytes": target, "seed": seed}
                    ours = results.once(key, lambda: bench.ours(changes, target, seed))  # noqa: B023
                    screen.print(f"  ours, {form}: {ours['damage_nats']:.4f}", style="dim")
    for score in ("damage_nats", "divergence_nats"):
        print(markdown(*comparison(results.find(bench.setting), args.recipe, score)), end="\n\n")


if __name__ == "__main__":
    main()
