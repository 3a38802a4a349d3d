"""Learning by reading, at equal steps and tokens: section by section, and what a user would try instead; over seeds.

    python benchmarks/learning.py --text GENERAL.jsonl --general TEST.jsonl [--only 'sections*' 'lora*'] [--out learning.jsonl]

The model is the embedded one, compressed to `--size`; the papers are the embedded articles, of which one is held out, or
`--papers`, or what has been read already (`--reading`; `--papers` is its name in the lines then). Every variant takes the
gradient steps and the tokens that `sections` takes with the same seed (replayed text counts). `sections` goes through the
corpus once for every gradient step of a section (`order: cyclic`) and learns questions alone, on the half of the blocks
whose gradient they raise most. Needs PEFT for LoRA (`pip install quasitile[peft]`).
Writes a JSON line a variant and seed and repeats none that is there; `--table` prints what is there and runs nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from measure import Results, interval, markdown  # beside this file
from rich.console import Console

from quasitile import AdaptSettings, CompressSettings, adapt, compress, load_model, read
from quasitile.adapt.curriculum import ORDERS
from quasitile.baselines import TuneSettings, tune
from quasitile.compress.text import read_texts
from quasitile.evaluate import EvaluateSettings, text_loss
from quasitile.evaluate.answers import answer_report, ask
from quasitile.evaluate.battery import read_sentences
from quasitile.evaluate.choices import choice_report, choices_from_questions
from quasitile.evaluate.probe import entity_f1
from quasitile.folders import read_jsonl, write_jsonl
from quasitile.progress import set_quiet
from quasitile.reading import ReadSettings
from quasitile.recipe import resolve

FIGURES = {
    "taught_f1": "taught, F1",
    "taught_em": "exact",
    "unseen_f1": "unseen words, F1",
    "unseen_em": "exact",
    "choices": "multiple choice on the papers",
    "entity_f1": "entities, F1 of a linear probe",
    "domain_nats": "held-out papers",
    "general_nats": "general text",
    "tokens_per_second": "tokens a second",
}
REFERENCE = "sections"
JUDGED = 96  # windows of general text that decide how much is kept
HALF = "half"  # of `--rate`
# Of `adapt` on the compressed model; what is not said is the benchmark's own setting below.
SECTIONS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "sections, half the rate": {"learning_rate": HALF},
    "sections, all blocks": {"select": "all"},
    "sections, all blocks, half the rate": {"select": "all", "learning_rate": HALF},
    "sections, random blocks": {"select": "random"},
    "sections, blocks by use": {"select": "usage"},
    "sections, drawn back to 0.05": {"gate_nats": 0.05, "forget_nats": 0.05},
    "sections, never beyond the allowance": {"overshoot": 1.0},
    "sections, half the rate, never beyond the allowance": {"learning_rate": HALF, "overshoot": 1.0},
    "sections, no replay": {"replay_weight": 0.0, "replay_windows": 0, "forget_nats": 100.0, "gate_nats": 100.0},
    "sections, replay weighs 1": {"replay_weight": 1.0},
    "sections, their text too": {"text_weight": 1.0},
    **{f"sections, {order}": {"order": order} for order in ORDERS if order != "cyclic"},
}
LORA, FULL = {"train": "lora", "learning_rate": 5e-3}, {"train": "full", "learning_rate": 1e-3}
PASS = {"train": "full", "learning_rate": HALF}
TEXT = {"train": "full", "data": "text"}
TENTH, THIRD = {"replay_share": 0.1}, {"replay_share": 1 / 3}
# Of `tune`: whether the compressed model or the original learns, and what.
OTHERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "one pass, compressed": (True, {"train": "full"}),
    "one pass, compressed, half the rate": (True, PASS),
    "one pass, compressed, half the rate, a tenth replayed": (True, PASS | TENTH),
    "raw text, compressed": (True, TEXT),
    "LoRA, compressed": (True, LORA),
    "LoRA, compressed, rate 0.002": (True, LORA | {"learning_rate": 2e-3}),
    "LoRA, compressed, rate 0.001": (True, LORA | {"learning_rate": 1e-3}),
    "LoRA, compressed, a tenth replayed": (True, LORA | TENTH),
    "LoRA, compressed, half replayed": (True, LORA | {"replay_share": 0.5}),
    "LoRA, dense": (False, LORA),
    "LoRA on raw text, dense": (False, LORA | {"data": "text"}),
    "full fine-tuning, dense": (False, FULL),
    **{
        f"{name}, drawn back{to}": (True, changes | {"forget_nats": allowed})
        for to, allowed in (("", 0.02), (" to 0.05", 0.05))
        for name, changes in (
            ("LoRA, compressed", LORA),
            ("LoRA, compressed, a tenth replayed", LORA | TENTH),
            ("LoRA, compressed, a third replayed", LORA | THIRD),
            ("LoRA, compressed, rate 0.01, a third replayed", LORA | THIRD | {"learning_rate": 1e-2}),
            ("LoRA, compressed, rate 0.02, a third replayed", LORA | THIRD | {"learning_rate": 2e-2}),
            ("one pass, compressed, half the rate", PASS),
            ("one pass, compressed, half the rate, a tenth replayed", PASS | TENTH),
            ("one pass, compressed, half the rate, a third replayed", PASS | THIRD),
            ("raw text, compressed, a tenth replayed", TEXT | TENTH),
        )
    },
    **{
        f"{name}, dense, a {share} replayed, drawn back": (False, changes | replay | {"forget_nats": 0.02})
        for share, replay in (("tenth", TENTH), ("third", THIRD))
        for name, changes in (
            ("LoRA", LORA),
            ("full fine-tuning", FULL),
            ("full fine-tuning at 0.0005", FULL | {"learning_rate": 5e-4}),
        )
    },
}


class Bench:
    """Models, data and what is scored, made once."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.original = resolve("embedded:base")
        self.text = folder / "text.jsonl"
        texts = [text[:4000] for text in read_texts(args.text)]
        write_jsonl(self.text, [{"text": text} for text in texts[:: max(1, sum(map(len, texts)) // 600_000)]])
        self.reading = args.reading or folder / "reading"
        if not args.reading:
            read(resolve(args.papers), self.reading, ReadSettings(min_facts=1, max_facts=args.facts, max_phrasings=3))
        calibration = {"num_windows": 24, "num_tokens": 256}
        self.compressed = Path(args.model) if args.model else folder / "compressed"
        if not args.model:
            settings = CompressSettings.model_validate(
                {"size": args.size, "trellis": 1, "calibration": calibration, "workers": 1}
            )
            compress(self.original, self.compressed, text=self.text, settings=settings)
        self.general = [text[:1000] for text in read_texts(args.general)]  # of every book, not the first ones alone
        test = [row for row in read_jsonl(self.reading / "sections.jsonl") if row["split"] == "test"]
        self.domain = [f"{row['title']}\n\n{row['text']}" for row in test]
        self.taught = sections_of(self.reading, args.sections)
        records = [row for row in read_jsonl(self.reading / "questions.jsonl") if place(row) in self.taught]
        self.questions = {
            split: [row for row in records if row["metadata"]["split"] == split] for split in ("train", "phrasing")
        }
        self.choices = choices_from_questions(self.questions["phrasing"], 0, pool=read_jsonl(self.reading / "questions.jsonl"))
        entities = args.entities or [resolve("embedded:papers") + "/entities.conll"]
        self.sentences = read_sentences(entities, self.reading, EvaluateSettings())

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """Answers from memory, choices between answers, entities of held-out sentences, and losses on held-out text."""
        figures = {}
        for split, name in (("train", "taught"), ("phrasing", "unseen")):
            records = self.questions[split][: self.args.questions]
            report = answer_report(ask(model, tokenizer, records, [None] * len(records))[0])
            figures |= {f"{name}_f1": report["token_f1"], f"{name}_em": report["exact_match"]}
        figures["choices"] = choice_report(model, tokenizer, self.choices)["accuracy"]
        figures["entity_f1"] = entity_f1(model, tokenizer, *self.sentences)["f1"]
        for name, texts in (("domain_nats", self.domain), ("general_nats", self.general)):
            figures[name] = text_loss(model, tokenizer, texts, max_tokens=self.args.scored)["nats_per_token"]
        return figures

    def with_rate(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes with the learning rate that they say, or `--rate`."""
        rate = changes.get("learning_rate", self.args.rate)
        return {**changes, "learning_rate": self.args.rate / 2 if rate == HALF else rate}

    def sections(self, changes: dict[str, Any], seed: int) -> dict[str, Any]:
        """Read section by section."""
        settings = AdaptSettings.model_validate(
            {
                "max_sections": self.args.sections,
                "steps_per_section": self.args.steps,
                "num_asked": 1,
                "order": "cyclic",
                "select": "gradient",
                "num_questions": 12,
                "num_revisited": 12,
                "text_weight": 0.0,
                "text_tokens": 96,
                "replay_windows": self.args.replay_windows or 4,
                "replay_weight": self.args.replay_weight,
                "replay_tokens": 96,
                "gate_nats": self.args.forget,
                "forget_nats": self.args.forget,
                "judged_windows": JUDGED,
                "seed": seed,
                **self.with_rate(changes),
            }
        )
        out = self.folder / "adapted"
        started = time.monotonic()
        summary = adapt(self.compressed, self.reading, out, teacher=self.original, text=self.text, settings=settings)
        seconds = time.monotonic() - started
        figures = self.score(*load_model(out))
        speed = read_jsonl(out / "metrics.jsonl")[-1]["tokens_per_second"]
        kept = {
            key: summary[key] for key in ("num_steps", "num_tokens", "num_undone", "kept_share", "stored_bytes", "step_factor")
        }
        return {**figures, **kept, "tokens_per_second": speed, "seconds": round(seconds, 1)}

    def other(self, compressed: bool, changes: dict[str, Any], seed: int, steps: int, tokens: int) -> dict[str, Any]:
        """Train as others would."""
        amount = {"num_steps": steps, "num_tokens": tokens, "max_sections": self.args.sections, "seed": seed}
        settings = TuneSettings.model_validate(
            {"text_tokens": 96, "judged_windows": JUDGED, **amount, **self.with_rate(changes)}
        )
        out, base = self.folder / "tuned", self.compressed if compressed else self.original
        started = time.monotonic()
        summary = tune(base, self.reading, out, settings, text=self.text)
        seconds = time.monotonic() - started
        figures = self.score(*load_model(out))
        speed = round(summary["num_tokens"] / summary["train_seconds"], 1)
        kept = {key: summary[key] for key in ("num_steps", "num_tokens", "stored_bytes")}
        return {**figures, **kept, "tokens_per_second": speed, "seconds": round(seconds, 1)}


def sections_of(reading: Path, count: int) -> set[tuple[str, int]]:
    """The sections that are taught."""
    from quasitile.adapt.curriculum import read_lessons, spread

    return {(lesson.document, lesson.section) for lesson in spread(read_lessons(reading), count)}


def place(record: dict[str, Any]) -> tuple[str, int]:
    """The section of a question."""
    return record["metadata"]["document"], record["metadata"]["section"]


def table(lines: list[dict[str, Any]]) -> str:
    """Means and 95 % intervals over seeds."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        found[line["variant"]].append(line)
    rows = []
    for variant, measured in found.items():
        cells = [interval([line[key] for line in measured if key in line]) if key in measured[0] else "" for key in FIGURES]
        rows.append((variant, str(len(measured)), *cells))
    return markdown(("", "seeds", *FIGURES.values()), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="general text for calibration, replay and the gate")
    parser.add_argument("--general", required=True, help="general text that is scored")
    parser.add_argument("--papers", default="embedded:papers")
    parser.add_argument(
        "--reading", type=Path, help="what `quasitile read` made of `--papers`, where it needs settings of its own"
    )
    parser.add_argument("--entities", nargs=2, help="annotated sentences to learn from and to test on")
    parser.add_argument("--model", help="a compressed model folder, instead of one made here")
    parser.add_argument("--size", default="25%")
    parser.add_argument("--sections", type=int, default=6, help="that are taught, evenly spread over the articles")
    parser.add_argument("--facts", type=int, default=2, help="that are asked about, a section, at most")
    parser.add_argument("--steps", type=int, default=10, help="a section")
    parser.add_argument("--rate", type=float, default=0.1, help="rounding steps a step of Adam")
    parser.add_argument(
        "--forget", type=float, default=0.1, help="nats of general text that a section, and the whole reading, may cost"
    )
    parser.add_argument("--replay-windows", type=int, help="that `sections` replays in a step; 4")
    parser.add_argument("--replay-weight", type=float, help="of them; the default of `adapt`")
    parser.add_argument("--questions", type=int, default=48, help="of a kind that are asked")
    parser.add_argument("--scored", type=int, default=4096, help="tokens of each text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["*"])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("learning.jsonl"))
    args = parser.parse_args()
    results = Results(args.out)
    setting = {key: getattr(args, key) for key in ("size", "sections", "facts", "steps", "rate", "forget", "papers")}
    replay = {key: getattr(args, key) for key in ("replay_windows", "replay_weight")}
    setting |= {key: value for key, value in replay.items() if value is not None}
    if args.table:
        print(table(results.find(setting)))
        return
    set_quiet(True)
    screen = Console()

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in args.only)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for name, location in (("the original", bench.original), ("compressed", bench.compressed)):
            results.once({**setting, "variant": name, "seed": 0}, lambda location=location: bench.score(*load_model(location)))
        for seed in range(args.seeds):
            reference: dict[str, Any] = {}
            for name, changes in SECTIONS.items():
                if name == REFERENCE or wanted(name):
                    key = {**setting, "variant": name, "seed": seed}
                    line = results.once(key, lambda changes=changes, seed=seed: bench.sections(changes, seed))
                    reference = reference or line
                    screen.print(line, style="dim")
            steps, tokens = reference["num_steps"], reference["num_tokens"]
            for name, (compressed, changes) in OTHERS.items():
                if wanted(name):
                    key = {**setting, "variant": name, "seed": seed}
                    line = results.once(key, lambda call=(compressed, changes, seed, steps, tokens): bench.other(*call))
                    screen.print(line, style="dim")
    print(table(results.find(setting)))


if __name__ == "__main__":
    main()
