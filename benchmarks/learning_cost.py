"""Seconds, tokens a second and peak memory of reading section by section beside PEFT's LoRA, each in a process of its own.

    python benchmarks/learning_cost.py MODEL --text GENERAL.jsonl [--rounds 3] [--sections 4] [--steps 8]

MODEL is compressed. All get the same sections, steps and about the same tokens, in turns, so that other work meets them
alike; ratios are of tokens a second in the same round. What is counted is training: of reading, with its asking, its
choice of blocks and its gate; loading and storing are left out. The rivals run as Transformers' Trainer runs them,
batches padded to their longest row, LoRA again with rows of like length in a batch (`group_by_length`). Needs PEFT.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from measure import interval, markdown  # beside this file

from quasitile import read
from quasitile.folders import read_json, read_jsonl
from quasitile.progress import set_quiet
from quasitile.reading import ReadSettings
from quasitile.recipe import resolve

SECTIONS = "section by section"
ORIGINAL = "embedded:base"
# Whether the compressed model or the original learns, and settings of `tune`.
RIVALS: dict[str, tuple[bool, dict[str, object]]] = {
    "LoRA": (True, {}),
    "LoRA, group_by_length": (True, {"group_by_length": True}),
    "LoRA on the original": (False, {}),
    "one pass over the questions": (True, {"train": "full", "learning_rate": 0.01}),
    "raw text": (True, {"train": "full", "data": "text", "learning_rate": 0.01}),
    "all of the original (full fine-tuning)": (False, {"train": "full"}),
}

# Runs the command line and says at the end how much memory its process ever had.
RUN = "import sys; from quasitile.cli import app; from quasitile.folders import peak_memory_bytes\n\
try: app(sys.argv[1:])\nfinally: print('PEAK', peak_memory_bytes())"


def run(*command: str) -> int:
    """Peak memory of a command of quasitile, in bytes.

    Raises:
        SystemExit: It failed.
    """
    done = subprocess.run([sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(done.stdout.split("PEAK")[-1])


def options(changes: Iterable[str]) -> list[str]:
    """Settings as the command line takes them."""
    return [part for change in changes for part in ("--set", change)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True, help="general text for replay and the gate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="a section")
    args = parser.parse_args()
    set_quiet(True)
    names = [SECTIONS, *RIVALS]
    speeds, seconds, peaks = ({name: [] for name in names} for _ in range(3))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        read(resolve("embedded:papers"), folder / "reading", ReadSettings())
        for number in range(args.rounds):
            out = folder / f"adapted-{number}"
            changes = (f"max_sections={args.sections}", f"steps_per_section={args.steps}", f"seed={number}")
            models = ("--teacher", ORIGINAL, "--text", args.text)
            peaks[SECTIONS].append(run("adapt", args.model, str(folder / "reading"), str(out), *models, *options(changes)))
            line, summary = read_jsonl(out / "metrics.jsonl")[-1], read_json(out / "summary.json")
            speeds[SECTIONS].append(line["tokens_per_second"])
            seconds[SECTIONS].append(line["seconds"])
            amount = {"num_steps": summary["num_steps"], "num_tokens": summary["num_tokens"]}
            amount |= {"max_sections": args.sections, "seed": number}
            for name, (compressed, own) in RIVALS.items():
                tuned = folder / f"{name}-{number}"
                changes = [f"{key}={value}" for key, value in {**amount, **own}.items()]
                model = args.model if compressed else ORIGINAL
                peaks[name].append(run("tune", model, str(folder / "reading"), str(tuned), *options(changes)))
                summary = read_json(tuned / "summary.json")
                speeds[name].append(summary["num_tokens"] / summary["train_seconds"])
                seconds[name].append(summary["train_seconds"])
    rows = []
    for name in names:
        ratios = [ours / theirs for ours, theirs in zip(speeds[SECTIONS], speeds[name], strict=True)]
        memory = f"{statistics.fmean(peaks[name]) / 1e9:.2f}"
        rows.append((name, interval(seconds[name]), interval(speeds[name]), interval(ratios), memory))
    print(markdown(("", "seconds", "tokens a second", "reading, times as fast", "peak memory, GB"), rows))


if __name__ == "__main__":
    main()
