"""What alignment wins back: damage before and after, by form, size, tokens and loss.

    python benchmarks/alignment.py --text TRAIN.jsonl --general TEST.jsonl [--forms best paper] [--bits 2 0.5] [--losses '*']

A form is a recipe of `recipes/`, compressed without a trellis (docs/learning.md says why), and into products at very few
bits where `--products` lets `compress` choose. Every one of `--rates` is tried with `--tokens-tried` tokens of the same text;
the best on held-out windows of it goes on with each of `--train-tokens`. `--losses` takes names of LOSSES below, or
patterns. `--layer-steps` trains layer by layer first, on the first of the windows that all layers train on together
afterwards. Compressed models are kept in `--models`. Writes a JSON line a model and a run to `--out` and repeats none that
is there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from measure import WINDOW_TOKENS, Bench, Results, common_arguments, interval, markdown, recipe_of  # beside this file
from rich.console import Console

from quasitile import AlignSettings, CompressSettings, align, compress, load_model

LOGITS = "KL of the predictions"
LOSSES: dict[str, dict[str, Any]] = {
    LOGITS: {"hidden_weight": 0},
    "+ KL of hidden states": {"hidden_weight": 0.05, "divergence": "kl"},
    "+ JS of hidden states": {"hidden_weight": 0.05, "divergence": "js"},
    "+ W1 of hidden states": {"hidden_weight": 0.05, "divergence": "w1"},
    "+ MSE of hidden states": {"hidden_weight": 0.05, "divergence": "mse"},
    "+ KL, through the vocabulary": {"hidden_weight": 0.05, "reading": "vocabulary"},
    "+ KL, as Gaussians": {"hidden_weight": 0.05, "reading": "gaussian"},
    "KL of hidden states alone (Eq. 5)": {"logit_weight": 0, "hidden_weight": 1},
    "+ next token": {"hidden_weight": 0, "language_model_weight": 0.3},
    "KL at temperature 2": {"hidden_weight": 0, "temperature": 2.0},
    "KL at temperature 1.4": {"hidden_weight": 0, "temperature": 1.4},
    "next token alone": {"logit_weight": 0, "hidden_weight": 0, "language_model_weight": 1},
}


class Alignment:
    """Models under test, made once, and runs on them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.bench, self.results = args, Bench(args), Results(args.out)
        self.starts: dict[Path, dict[str, float]] = {}

    def model(self, form: str, bits: float, seed: int) -> tuple[Path, dict[str, Any]]:
        """A compressed model and how much was lost."""
        bench, products = self.bench, self.args.products
        out = self.args.models / f"{form}-{bits:g}-{self.args.windows}-{seed}{'-products' if products else ''}"

        def make() -> dict[str, Any]:
            changes = {**recipe_of(form), "trellis": 1, "seed": seed, "workers": self.args.workers, "products": products}
            changes["size"] = f"{int(bits * bench.num_parameters / 8) / 1000:.3f}KB"
            amounts = {"num_windows": self.args.windows, "num_tokens": WINDOW_TOKENS}
            changes["calibration"] = {**changes.get("calibration", {}), **amounts}
            summary = compress(bench.location, out, text=bench.text, settings=CompressSettings.model_validate(changes))
            return {"stored_bytes": summary["stored_bytes"], **bench.score(load_model(out)[0])}

        key = {**bench.setting, "variant": "compressed", "form": form, "bits": bits, "seed": seed, "products": products or None}
        line = self.results.once(key, make)
        if not out.exists():
            make()  # of an earlier run, whose folder is gone
        return out, line

    def start(self, model: Path) -> dict[str, float]:
        """What a run begins with: newer code than that of the line in the file may have made the model."""
        if model not in self.starts:
            scores = self.bench.score(load_model(model)[0])
            self.starts[model] = {name.replace("_nats", "_before_nats"): value for name, value in scores.items()}
        return self.starts[model]

    def run(self, form: str, bits: float, seed: int, tokens: int, rate: float, loss: str) -> dict[str, Any]:
        """Align, and score what was stored."""
        bench, (model, _), batch = self.bench, self.model(form, bits, seed), self.args.batch
        layers = self.args.layer_steps
        num_steps = round(tokens / (batch * WINDOW_TOKENS))

        def go() -> dict[str, Any]:
            amounts = {"num_steps": num_steps, "batch_size": batch, "num_tokens": WINDOW_TOKENS, "learning_rate": rate}
            fixed = {"price_bits": self.args.price, "save_every": 0, "seed": seed, "layer_steps": min(layers, num_steps)}
            settings = AlignSettings.model_validate({**amounts, **fixed, **LOSSES[loss]})
            started = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "aligned"
                summary = align(model, out, teacher=bench.location, text=bench.text, settings=settings)
                scores = bench.score(load_model(out)[0])
            stored = {name: summary[name] for name in ("stored_bytes", "step_factor")}
            stored["held_out_nats"] = summary["damage_after_nats"]
            seconds = round(time.process_time() - started, 1)
            return {**stored, **scores, **self.start(model), "cpu_seconds": seconds}

        key = {
            "variant": "aligned",
            "form": form,
            "bits": bits,
            "seed": seed,
            "batch": batch,
            "price_bits": self.args.price,
            "tokens_trained": num_steps * batch * WINDOW_TOKENS,
            "layer_steps": layers or None,  # lines made before these were settings have none
            "products": self.args.products or None,
        }
        return self.results.once({**bench.setting, **key, "rate": rate, "loss": loss}, go)


def table(lines: list[dict[str, Any]]) -> str:
    """Damage before and after, by form, size, loss, tokens and rate."""
    compressed = [line for line in lines if line["variant"] == "compressed"]
    before = {(line["form"], line["bits"], line["seed"], line.get("products") or False): line for line in compressed}
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for line in lines:
        if line["variant"] == "aligned":
            how = line["tokens_trained"], line.get("batch", 16), line["rate"], line.get("price_bits", False)
            how += line.get("layer_steps") or 0, line.get("products") or False
            groups.setdefault((line["form"], line["bits"], line["loss"], *how), []).append(line)
    rows = []
    for (form, bits, loss, tokens, batch, rate, priced, layers, products), group in sorted(
        groups.items(), key=lambda entry: (entry[0][:2], entry[0][3:])
    ):
        cells = [form, f"{bits:g}", loss, f"{tokens // 1000} k", str(batch), f"{rate:g}", "yes" if priced else "no"]
        cells += [str(layers), "yes" if products else "no", str(len(group))]
        for score in ("damage_nats", "divergence_nats"):
            own = score.replace("_nats", "_before_nats")  # older lines have none
            starts = [line[own] if own in line else before[form, bits, line["seed"], products][score] for line in group]
            won = [100 * (1 - line[score] / start) for line, start in zip(group, starts, strict=True)]
            cells += [interval(starts), interval([line[score] for line in group]), f"{sum(won) / len(won):.0f} %"]
        rows.append(tuple(cells))
    names = ("form", "bits", "loss", "tokens", "windows a step", "rate", "price", "layer steps", "products", "seeds")
    return markdown((*names, "damage before", "after", "won back", "divergence before", "after", "won back"), rows)


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--forms", nargs="+", default=["best", "paper"], help="names of recipes")
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 2, 1, 0.5, 0.28])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.003, 0.01], help="rounding steps a step of Adam")
    parser.add_argument("--batch", type=int, default=4, help="windows a step; 16 in the lines made before 4 was the default")
    parser.add_argument("--price", action=argparse.BooleanOptionalAction, default=True, help="a price on bits while training")
    parser.add_argument("--tokens-tried", type=float, default=1e5, help="for the choice of a rate")
    parser.add_argument("--train-tokens", type=float, nargs="*", default=[1e6])
    parser.add_argument("--products", action="store_true", help="let `compress` choose products at very few bits")
    parser.add_argument("--layer-steps", type=int, default=0, help="steps a layer before, at most as many as after")
    parser.add_argument("--losses", nargs="+", default=[LOGITS])
    parser.add_argument("--models", type=Path, default=Path("alignment-models"))
    args = parser.parse_args()
    screen, study = Console(), Alignment(args)
    losses = [name for name in LOSSES if any(fnmatchcase(name, pattern) for pattern in args.losses)]
    for seed in range(args.seeds):
        for form in args.forms:
            for bits in args.bits:
                for loss in losses:
                    tried = [study.run(form, bits, seed, int(args.tokens_tried), rate, loss) for rate in args.rates]
                    rate = min(tried, key=lambda line: line["held_out_nats"])["rate"]
                    longer = [study.run(form, bits, seed, int(tokens), rate, loss) for tokens in args.train_tokens]
                    screen.print(*tried, *longer, style="dim", sep="\n")
    print(table(study.results.find(study.bench.setting)))


if __name__ == "__main__":
    main()
