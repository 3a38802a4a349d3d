"""What the benchmarks of quality share: a model under test, and a file of results that a stopped run continues.

Everything of ours goes through the public `compress` and `load_model`: what is measured is the folder that a user gets.
Damage is the rise of the loss on `--general` over the original, divergence the KL of the predictions there
from the original's, both in nats a token: the loss moves by about 0.001 on 10,000 tokens whatever is
rounded, the divergence resolves far less. A seed draws other calibration text and other labels.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy

from quasitile import CompressSettings, compress, load_model
from quasitile.baselines import BaselineSettings, baseline
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.evaluate.batches import inference, window_length
from quasitile.evaluate.divergence import softmax_kl
from quasitile.evaluate.perplexity import token_stream, windows
from quasitile.folders import write_jsonl
from quasitile.progress import set_quiet
from quasitile.recipe import presets, resolve
from quasitile.runtime import compressible_layers

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
WINDOW_TOKENS = 256
LONGEST_TEXT = 10_000  # characters of a text, so that no book outweighs the others


def common_arguments(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark of quality takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded:base")
    parser.add_argument("--text", required=True, help="calibration text")
    parser.add_argument(
        "--characters", type=int, default=2_000_000, help="of the calibration text, from which windows are drawn"
    )
    parser.add_argument("--general", required=True, help="the text that is scored")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=48, help=f"of {WINDOW_TOKENS} calibration tokens")
    parser.add_argument("--tokens", type=int, default=20000, help="of the general text that is scored")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"), help="what it holds is not measured again")
    return parser


def recipe_of(name: str) -> dict[str, Any]:
    """The `compress` section of `recipes/NAME.yaml` or of a preset; of a baseline, its settings under `baseline`.

    Raises:
        InputError: There is no such recipe.
    """
    path = RECIPES / f"{name}.yaml" if (RECIPES / f"{name}.yaml").exists() else presets().get(name)
    if path is None:
        raise InputError(f"{name} is neither a recipe of {RECIPES}, nor a preset, nor a variation of the benchmark")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"baseline": recipe["baseline"]} if "baseline" in recipe else recipe.get("compress", {})


class Bench:
    """A model under test, and what measures it."""

    def __init__(self, args: argparse.Namespace) -> None:
        set_quiet(True)
        self.args = args
        self.location = resolve(args.model)
        self.model, self.tokenizer = load_model(self.location)
        self.folder = tempfile.TemporaryDirectory()
        self.text = Path(self.folder.name) / "text.jsonl"
        texts, self.general = read_texts(args.text), read_texts(args.general)
        texts = [text[:LONGEST_TEXT] for text in texts]
        write_jsonl(self.text, [{"text": text} for text in texts[:: max(1, sum(map(len, texts)) // args.characters)]])
        self.texts = read_texts(self.text)
        self.layers, self.tied = compressible_layers(self.model)
        self.original = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        stream, _ = token_stream(self.tokenizer, self.general, args.tokens)
        self.scored = list(windows(stream, window_length(self.model, 512), 8))
        self.logits = list(self.predictions(self.model))
        self.setting = {"model": Path(self.location).name, "windows": args.windows, "tokens": args.tokens}

    def predictions(self, model: Any) -> Iterator[Tensor]:
        """Logits (B, T, V) of every batch of the general text."""
        for tokens in self.scored:
            with inference(model):
                yield model(input_ids=tokens[:, :-1], use_cache=False).logits.float()

    def score(self, model: Any) -> dict[str, float]:
        """Damage and divergence of a model, in nats a token."""
        damage, divergence, count = 0.0, 0.0, 0
        for tokens, ours, theirs in zip(self.scored, self.predictions(model), self.logits, strict=True):
            labels = tokens[:, 1:].flatten()
            damage += sum(
                sign * float(cross_entropy(logits.flatten(0, 1), labels, reduction="none").double().sum())
                for sign, logits in ((1, ours), (-1, theirs))
            )
            divergence += float(softmax_kl(ours, theirs))
            count += len(labels)
        return {"damage_nats": damage / count, "divergence_nats": divergence / count}

    def windows(self, seed: int) -> Tensor:
        """The calibration tokens of a seed (count, T), the same that `compress` draws."""
        return token_windows(self.tokenizer, self.texts, WINDOW_TOKENS, self.args.windows, seed)

    def score_with(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """`score` with other matrices (M, N) in the place of the model's own."""
        for name, weight in weights.items():
            self.layers[name].weight.data.copy_(weight)
        scores = self.score(self.model)
        for name in weights:
            self.layers[name].weight.data.copy_(self.original[name])
        return scores

    def ours(self, changes: dict[str, Any], num_bytes: int, seed: int) -> dict[str, Any]:
        """Compress to at most so many bytes, load what was written, and score it."""
        calibration = {**changes.get("calibration", {}), "num_windows": self.args.windows, "num_tokens": WINDOW_TOKENS}
        amount = {"size": f"{num_bytes / 1000:.3f}KB", "seed": seed}
        if "baseline" in changes:
            own = BaselineSettings.model_validate({**changes["baseline"], **amount, "calibration": calibration})
            with tempfile.TemporaryDirectory() as folder:
                summary = baseline(self.location, Path(folder) / "model", text=self.text, settings=own)
                scores = self.score(load_model(Path(folder) / "model")[0])
            return {"stored_bytes": summary["counted_bytes"], **scores}
        amount["workers"] = self.args.workers
        settings = CompressSettings.model_validate({**changes, **amount, "calibration": calibration})
        with tempfile.TemporaryDirectory() as folder:
            summary = compress(self.location, Path(folder) / "model", text=self.text, settings=settings)
            scores = self.score(load_model(Path(folder) / "model")[0])
        predicted = summary["predicted_damage_nats"]
        return {"stored_bytes": summary["stored_bytes"], **scores, "predicted_nats": predicted}


class Results:
    """A file of JSON lines, one a measurement."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, key: dict[str, Any]) -> list[dict[str, Any]]:
        """The measurements that agree with a key."""
        return [line for line in self.lines if all(line.get(name) == value for name, value in key.items())]

    def once(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A measurement, made only where the file lacks it."""
        if not (known := self.find(key)):
            known = [key | measure()]
            self.lines += known
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(known[0]) + "\n")
        return known[0]


def interval(values: list[float]) -> str:
    """Mean and half the width of the 95 % interval (Student's t) over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.57)
    return f"{mean:.4f} ± {quantile * statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def score_table(lines: Iterable[dict[str, Any]], score: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows: variants down, bits an original weight across, each mean and interval over the seeds."""
    found: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for line in lines:
        found[line["variant"], line["bits"]].append(line[score])
    sizes = sorted({bits for _, bits in found}, reverse=True)
    rows = [
        (variant, *(interval(found[variant, bits]) if (variant, bits) in found else "" for bits in sizes))
        for variant in dict.fromkeys(variant for variant, _ in found)
    ]
    return (score.replace("_", " "), *(f"{bits:g} bits" for bits in sizes)), rows


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as the pages of docs/results/ have it."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
