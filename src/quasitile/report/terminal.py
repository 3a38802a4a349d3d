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


def measures_table(models: dict[str, dict[str, Any]]) -> Table:
    """The report's main table, as text: what is measured, its unit, and each model's number."""
    groups, _ = main_table(models)
    names = list(models)
    rows: list[tuple[str, ...]] = []
    for title, entries in groups:
        rows.append((f"[bold]{title}[/bold]", *[""] * len(names)))
        for row in entries:
            arrow = "lower is better" if row.measure.lower_is_better else "higher is better"
            unit = f", {row.measure.unit}" if row.measure.unit else ""
            rows.append(
                (f"  {row.measure.label}{unit} [dim]({arrow})[/dim]", *(mark(cell.text, cell.best) for cell in row.cells))
            )
    return table("", ("", *names), rows)


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
        f"({size['stored_bytes'] / size['original_bytes']:.1%}, {8 * size['stored_bytes'] / (size['original_bytes'] / 2):.2f} bits a weight) "
        f"in {duration(seconds)}, with at most {human_bytes(summary['peak_memory_bytes'])} of memory."
    )
    screen.print(f"The model is in {run / 'adapted'}, the report in {run / 'report.html'}: open it in a browser.")
