"""Where to read when the model is to become very small: at a size that learns, and compress further afterwards.

    python benchmarks/teach_first.py --model MODEL --text GENERAL.jsonl --general TEST.jsonl [--sizes 12.5% 6.25%] [--seeds 1]

MODEL is the embedded one, compressed without a trellis (docs/results/learning.md). It reads as in `learning.py`, section by
section with all blocks; then it is exported and compressed to each of `--sizes`, calibrated on general text alone or on
general text with the questions that it was taught, so many windows of questions a window of general text as `--shares` say.
Writes a JSON line a measurement to `--out`; repeats no seed that is there.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from learning import Bench, place  # beside this file
from measure import Results, interval, markdown
from rich.console import Console

from quasitile import CompressSettings, compress, export, load_model
from quasitile.compress.text import read_texts
from quasitile.folders import read_jsonl, write_jsonl
from quasitile.progress import set_quiet

WINDOW_TOKENS = 256
READING = {"sections": 8, "facts": 4, "steps": 8, "rate": 0.01, "forget": 0.02, "questions": 60, "scored": 16384}


def windows(tokenizer: Any, texts: list[str], count: int) -> str:
    """Text of so many windows of tokens; texts are taken again from the first where there are too few."""
    ids: list[int] = []
    while len(ids) < count * WINDOW_TOKENS:
        for text in texts:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[: count * WINDOW_TOKENS])


class Study:
    """What is read, and what it is calibrated on afterwards."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.bench, self.folder = args, Bench(args, folder), folder
        texts = [text[:4000] for text in read_texts(args.text)]
        self.texts = texts[:: max(1, len(texts) // 200)]
        records = read_jsonl(self.bench.reading / "questions.jsonl")
        self.taught = [row for row in records if place(row) in self.bench.taught and row["metadata"]["split"] == "train"]

    def compressed(self, model: Path | str, size: str, share: float, seed: int) -> dict[str, float]:
        """What a model knows and how well it speaks once it is compressed further."""
        tokenizer, text, out = load_model(model)[1], self.folder / "calibration.jsonl", self.folder / "small"
        asked = round(share * self.args.windows)
        questions = [tokenizer.apply_chat_template(row["messages"], tokenize=False, trace="none") for row in self.taught]
        parts = windows(tokenizer, self.texts, self.args.windows), windows(tokenizer, questions, asked)
        write_jsonl(text, [{"text": part} for part in parts if part])
        amount = {"num_windows": self.args.windows + asked, "num_tokens": WINDOW_TOKENS}
        settings = {"size": size, "trellis": 1, "workers": 1, "seed": seed, "calibration": amount}
        compress(model, out, text=text, settings=CompressSettings.model_validate(settings))
        return self.bench.score(*load_model(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="general text for calibration, replay and the gate")
    parser.add_argument("--general", required=True, help="general text that is scored")
    parser.add_argument("--model", required=True, help="compressed, in which the sections are read")
    parser.add_argument("--papers", default="embedded:papers")
    parser.add_argument("--sizes", nargs="+", default=["12.5%"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.125])
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
            results.once({"variant": "as it read", "size": "25%", "share": 0.0, "seed": seed}, lambda line=line: line)
            dense = study.folder / "dense"
            export(study.bench.folder / "adapted", dense)
            for size, (model, name) in product(args.sizes, ((study.bench.original, "the original"), (dense, "as it read"))):
                for share in args.shares if model is dense else [0.0]:
                    key = {"variant": f"{name}, compressed", "size": size, "share": share, "seed": seed}
                    screen.print(results.once(key, partial(study.compressed, model, size, share, seed)), style="dim")
    rows: dict[tuple, list[dict[str, Any]]] = {}
    for line in results.lines:
        rows.setdefault((line["variant"], line["size"], f"{line['share']:g}"), []).append(line)
    scores = ("taught_em", "unseen_em", "unseen_f1", "general_nats", "domain_nats")
    table = [(*name, str(len(found)), *(interval([line[s] for line in found]) for s in scores)) for name, found in rows.items()]
    print(markdown(("model", "size", "questions a window", "seeds", *scores), table))


if __name__ == "__main__":
    main()
