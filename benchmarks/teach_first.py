"""Where to read when the model is to become very small: at a size that learns, and compress further afterwards.

    python benchmarks/teach_first.py --model MODEL --text GENERAL.jsonl --general TEST.jsonl [--sizes 12.5% 6.25%] [--seeds 1]

MODEL is the embedded one, compressed without a trellis (docs/results/learning.md). It reads as in `learning.py`, section by
section with all blocks; then it is exported and compressed to each of `--sizes`, calibrated on general text alone or on
general text and the reading: so many windows of the questions that it was taught a window of general text as `--shares`
say, as far as the questions last; on a trellis of each of `--trellis` states. What `finish` does at the end of a run.
Writes a JSON line a measurement to `--out`; repeats no seed that is there.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from learning import Bench  # beside this file
from measure import Results, interval, markdown
from rich.console import Console

from quasitile import CompressSettings, compress, export, load_model
from quasitile.compress.text import read_texts
from quasitile.folders import write_jsonl
from quasitile.progress import set_quiet

READING = {
    "entities": None,
    "reading": None,
    "sections": 8,
    "facts": 4,
    "steps": 8,
    "rate": 0.01,
    "forget": 0.02,
    "questions": 60,
    "scored": 16384,
}


class Study:
    """What is read, and what it is calibrated on afterwards."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.bench, self.folder = args, Bench(args, folder), folder
        texts = [text[:4000] for text in read_texts(args.text)]
        self.text = folder / "calibration.jsonl"
        write_jsonl(self.text, [{"text": text} for text in texts[:: max(1, len(texts) // 200)]])

    def compressed(self, model: Path | str, size: str, share: float, trellis: int, seed: int) -> dict[str, float]:
        """What a model knows and how well it speaks once it is compressed further."""
        out, asked = self.folder / "small", round(share * self.args.windows)
        amount = {"num_windows": self.args.windows + asked, "reading_share": asked / (self.args.windows + asked)}
        changes = {"size": size, "trellis": trellis, "workers": 1, "seed": seed, "calibration": amount}
        settings, has_read = CompressSettings.model_validate(changes), self.bench.folder / "adapted"
        compress(model, out, text=self.text, reading=has_read, settings=settings)
        return self.bench.score(*load_model(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="general text for calibration, replay and the gate")
    parser.add_argument("--general", required=True, help="general text that is scored")
    parser.add_argument("--model", required=True, help="compressed, in which the sections are read")
    parser.add_argument("--papers", default="embedded:papers")
    parser.add_argument("--sizes", nargs="+", default=["12.5%"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.125])
    parser.add_argument("--trellis", type=int, nargs="+", default=[1, 8], help="states, 1 for none")
    parser.add_argument("--windows", type=int, default=96, help="of general calibration text")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("teach-first.jsonl"))
    args = parser.parse_args(namespace=argparse.Namespace(size="", **READING))
    set_quiet(True)
    results, screen = Results(args.out), Console()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(args, Path(folder))
        for seed in range(args.seeds):
            if results.find({"seed": seed}):
                continue
            line = study.bench.sections({"select": "all"}, seed)
            key = {"variant": "as it read", "size": "25%", "trellis": 1, "share": 0.0, "seed": seed}
            results.once(key, lambda line=line: line)
            dense = study.folder / "dense"
            export(study.bench.folder / "adapted", dense)
            models = (study.bench.original, "the original"), (dense, "as it read")
            for size, trellis, (model, name) in product(args.sizes, args.trellis, models):
                for share in args.shares if model is dense else [0.0]:
                    key = {"variant": f"{name}, compressed", "size": size, "trellis": trellis, "share": share, "seed": seed}
                    call = partial(study.compressed, model, size, share, trellis, seed)
                    screen.print(results.once(key, call), style="dim")
    rows: dict[tuple, list[dict[str, Any]]] = {}
    for line in results.lines:
        rows.setdefault((line["variant"], line["size"], str(line.get("trellis", 1)), f"{line['share']:g}"), []).append(line)
    scores = ("taught_em", "unseen_em", "unseen_f1", "general_nats", "domain_nats")
    table = [(*name, str(len(found)), *(interval([line[s] for line in found]) for s in scores)) for name, found in rows.items()]
    print(markdown(("model", "size", "trellis", "questions a window", "seeds", *scores), table))


if __name__ == "__main__":
    main()
