"""The end of a run on the terminal: one table that a newcomer understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from quasitile.folders import read_json
from quasitile.progress import human_bytes, table
from quasitile.report.formats import duration
from quasitile.report.measures import main_table


def print_measures(screen: Console, summary: dict[str, Any]) -> None:
    """The measures of an evaluation, a column a model."""
    screen.print(measures_table(summary["models"]))


# What fits on a screen; the page has every measure.
SHORT_LABELS = {
    ("stored_bytes",): "size on disk",
    ("general", "nats_per_token"): "general English: loss, nats a token",
    ("domain", "nats_per_token"): "held-out papers: loss, nats a token",
    ("domain", "perplexity"): "held-out papers: perplexity",
    ("divergence", "logit_kl_nats"): "change of its predictions, nats",
    ("answers", "closed_book", "train", "exact_match"): "questions it was taught: exactly right",
    ("answers", "closed_book", "phrasing", "exact_match"): "the same in new words: exactly right",
    ("answers", "closed_book", "phrasing", "token_f1"): "the same in new words: words in common",
    ("answers", "open_book", "test", "token_f1"): "held-out papers, open book: shared words",
    ("choices", "domain", "accuracy"): "multiple choice on the papers: right",
    ("choices", "general", "accuracy"): "multiple choice, general: right",
    ("entities", "f1"): "materials, properties, ... found: F1",
    ("cost", "decode_tokens_per_second"): "writing, tokens a second",
}


def measures_table(models: dict[str, dict[str, Any]]) -> Table:
    """The most telling rows of the report's main table, a column a model."""
    found = {row.measure.path: row for _, entries in main_table(models)[0] for row in entries}
    rows = []
    for path, label in SHORT_LABELS.items():
        if path in found:
            arrow = "\N{DOWNWARDS ARROW}" if found[path].measure.lower_is_better else "\N{UPWARDS ARROW}"
            rows.append((f"{label} {arrow}", *(mark(cell.text, cell.best) for cell in found[path].cells)))
    return table("", ("\N{DOWNWARDS ARROW} less, \N{UPWARDS ARROW} more is better; best in bold", *models), rows)


def mark(text: str, best: bool) -> str:
    """Bold for the best number of a row."""
    return f"[bold]{text}[/bold]" if best else text


def print_run(screen: Console, run: Path, summary: dict[str, Any]) -> None:
    """What a run ended with: the table, the size, the time, and where everything lies."""
    evaluation = read_json(run / "evaluation" / "summary.json")
    screen.print()
    print_measures(screen, evaluation)
    size = summary["size"]
    seconds = sum(summary["seconds"].values())
    screen.print()
    screen.print(
        f"{human_bytes(size['original_bytes'])} in bf16 became {human_bytes(size['stored_bytes'])} "
        f"({size['stored_bytes'] / size['original_bytes']:.1%}, {size['bits_per_weight']:.2f} bits a weight) "
        f"in {duration(seconds)}, with at most {human_bytes(summary['peak_memory_bytes'])} of memory."
    )
    last = run / list(evaluation["models"])[-1]
    screen.print(f"The model is in {last}, the report in {run / 'report.html'}: open it in a browser.")
