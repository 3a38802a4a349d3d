"""What long work shows while it runs: a bar with an estimate on a terminal, one line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False)
_state = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    """Turn bars and lines off (or on again); tables and errors are not affected."""
    _state["quiet"] = quiet


def say(line: str) -> None:
    """Print one line about what happens now."""
    if not _state["quiet"]:
        console.print(line)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` under a progress bar with time passed and time left."""
    if total is None and isinstance(items, Sequence):
        total = len(items)
    if _state["quiet"]:
        yield from items
        return
    if not console.is_terminal:
        started = time.monotonic()
        yield from items
        say(f"  {description}: {time.monotonic() - started:.1f} s")
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield from progress.track(items, description=description, total=total)


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table for the terminal: the first column is left-aligned, the others right-aligned."""
    out = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, header in enumerate(headers):
        out.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        out.add_row(*(str(cell) for cell in row))
    return out


def human_bytes(num_bytes: float) -> str:
    """`3.47 MB` from a number of bytes (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


class Meter:
    """Progress of a training run: steps, time left, and what `advance` says of the last step.

    On a terminal a bar, elsewhere five lines.

    Args:
        description: Of the work.
        total: Steps.
        done: Of them when it begins.
    """

    def __init__(self, description: str, total: int, done: int = 0) -> None:
        self.description, self.total, self.first, self.done = description, total, done, done
        self.started = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and not _state["quiet"]:
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(description, total=total, completed=done)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, text: str) -> None:
        """A step is done.

        Args:
            text: What there is to say of it.
        """
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"{self.description}: {text}")
        elif self.done == self.total or self.done % max(1, -(-self.total // 5)) == 0:
            left = (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)
            say(f"  {self.description}, {self.done} of {self.total}: {text}, {left:.0f} s left")
