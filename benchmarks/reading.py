"""How fast papers are read: sections a second, and against reading the bare bytes of the same files.

    python benchmarks/reading.py [FOLDER]

Without a folder, the package's own articles are read twenty times.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from quasitile import read
from quasitile.progress import set_quiet
from quasitile.recipe import resolve


def main() -> None:
    set_quiet(True)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else resolve("embedded:papers"))
    repeats = 1 if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        for _ in range(repeats):
            summary = read(folder, Path(out) / "reading")
        seconds = (time.perf_counter() - started) / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()
    bare = (time.perf_counter() - started) / repeats
    Console().print(
        f"{summary['num_sections']} sections, {summary['num_questions']} questions in {seconds:.2f} s: "
        f"{summary['num_sections'] / seconds:.0f} sections a second; {seconds / bare:.0f} times as long as reading the bytes"
    )


if __name__ == "__main__":
    main()
