"""How fast papers are read and asked about on one core, and whether memory grows with their number.

    python benchmarks/reading.py [FOLDER] [--sections 2000]

Sections of FOLDER (else of the package's own articles) are written again and again, each time with other numbers, into one
JSON-lines file until there are as many as wanted; that file is read. Seconds are processor time of this process.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console

from quasitile import read
from quasitile.progress import set_quiet
from quasitile.reading import pipeline
from quasitile.reading.discover import find_papers, read_file
from quasitile.recipe import resolve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path(resolve("embedded:papers")))
    parser.add_argument("--sections", type=int, default=2000)
    options = parser.parse_args()
    set_quiet(True)
    screen = Console()
    with tempfile.TemporaryDirectory() as folder:
        written = write_many(options.folder, Path(folder, "many.jsonl"), options.sections)
        marks: list[tuple[int, float, float]] = []
        inner, started, done = pipeline.ask, time.process_time(), 0

        def ask(*arguments):
            nonlocal done
            done += 1
            if done % max(1, written // 8) == 0:
                marks.append((done, time.process_time() - started, resident_megabytes()))
            return inner(*arguments)

        pipeline.ask = ask
        summary = read(Path(folder, "many.jsonl"), Path(folder, "out"))
        seconds = time.process_time() - started
    for sections, spent, resident in marks:
        screen.print(f"  {sections} sections: {spent:.0f} s, {resident:.0f} MB resident")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    screen.print(
        f"{summary['num_sections']} sections, {summary['num_questions']} questions in {seconds:.1f} s of processor time: "
        f"{summary['num_sections'] / seconds:.0f} sections a second, peak memory {peak:.0f} MB"
    )


def write_many(folder: Path, path: Path, wanted: int) -> int:
    """Copies of the papers, with other numbers, until the sections suffice."""
    documents = [
        document for paper in find_papers(folder) if paper.suffix in (".xml", ".md", ".tex") for document in read_file(paper)
    ]
    number, copy = 0, 0
    with path.open("w", encoding="utf-8") as out:
        while number < wanted:
            for document in documents:
                sections = [{"title": each.title, "text": changed(each.text, copy)} for each in document.sections if each.text]
                row = {"doc_id": f"{document.name}-{copy}", "title": document.title, "sections": sections}
                out.write(json.dumps(row) + "\n")
                number += len(sections)
                if number >= wanted:
                    break
            copy += 1
    return number


def changed(text: str, copy: int) -> str:
    """Every number raised and every long word marked, so that no two copies are duplicates."""
    words = (f"{word}{copy}" if len(word) > 6 and word.isalpha() and copy else word for word in text.split(" "))
    return " ".join(words)


def resident_megabytes() -> float:
    """The resident size now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
