"""Seconds, tokens a second and peak memory of reading section by section beside PEFT's LoRA, each in a process of its own.

    python benchmarks/learning_cost.py MODEL --text GENERAL.jsonl [--rounds 3] [--sections 4] [--steps 8]

MODEL is compressed. Both get the same sections, steps and about the same tokens, in turns, so that other work meets both
alike; the ratio is of tokens a second in the same round. What is counted is training: of reading, with its asking, its
choice of blocks and its gate; loading and storing are left out. LoRA runs as Transformers' Trainer runs it, its
batches padded to their longest row, and again with rows of like length in a batch (`group_by_length`). Needs PEFT.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import interval, markdown  # beside this file

from quasitile import read
from quasitile.folders import read_json, read_jsonl
from quasitile.progress import set_quiet
from quasitile.reading import ReadSettings
from quasitile.recipe import resolve

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True, help="general text for replay and the gate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="a section")
    args = parser.parse_args()
    set_quiet(True)
    speeds: dict[str, list[float]] = {"section by section": [], "LoRA": [], "LoRA, group_by_length": []}
    peaks: dict[str, list[float]] = {name: [] for name in speeds}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        read(resolve("embedded:papers"), folder / "reading", ReadSettings())
        for number in range(args.rounds):
            out = folder / f"adapted-{number}"
            changes = (f"max_sections={args.sections}", f"steps_per_section={args.steps}", f"seed={number}")
            options = [part for change in changes for part in ("--set", change)]
            models = ("--teacher", "embedded:base", "--text", args.text)
            peaks["section by section"].append(run("adapt", args.model, str(folder / "reading"), str(out), *models, *options))
            line, summary = read_jsonl(out / "metrics.jsonl")[-1], read_json(out / "summary.json")
            speeds["section by section"].append(line["tokens_per_second"])
            amount = {"num_steps": summary["num_steps"], "num_tokens": summary["num_tokens"]}
            amount |= {"max_sections": args.sections, "seed": number}
            for name in list(speeds)[1:]:
                tuned = folder / f"{name}-{number}"
                changes = {**amount, "group_by_length": name != "LoRA"}.items()
                options = [part for key, value in changes for part in ("--set", f"{key}={value}")]
                peaks[name].append(run("tune", args.model, str(folder / "reading"), str(tuned), *options))
                summary = read_json(tuned / "summary.json")
                speeds[name].append(summary["num_tokens"] / summary["train_seconds"])
    rows = [(name, interval(speeds[name]), f"{statistics.fmean(peaks[name]) / 1e9:.2f}") for name in speeds]
    print(markdown(("", "tokens a second", "peak memory, GB"), rows))
    print()
    for name in list(speeds)[1:]:
        ratios = [ours / theirs for ours, theirs in zip(speeds["section by section"], speeds[name], strict=True)]
        print(f"reading over {name}, tokens a second, round by round: {interval(ratios)}")


if __name__ == "__main__":
    main()
