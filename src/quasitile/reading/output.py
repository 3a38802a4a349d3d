"""The files of a reading folder, written while they are made, and the counts of what they hold."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TextIO

from quasitile.errors import InputError

TABLES = ("documents", "sections", "questions", "dropped", "skipped")


class Output:
    """Appends rows to the tables of a folder; nothing is held in memory but counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, TextIO] = {}
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("rows", "kinds", "sources", "splits", "reasons", "types", "characters", "facts")
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for name in TABLES:
            path = self.folder / f"{name}.jsonl"
            self.files[name] = self._stack.enter_context(path.open("w", encoding="utf-8"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, table: str, row: dict[str, Any]) -> None:
        """Append one row and count it."""
        self.files[table].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.counts["rows"][table] += 1
        if table == "questions":
            metadata = row["metadata"]
            self.counts["kinds"][metadata["kind"]] += 1
            self.counts["sources"][metadata["source"]] += 1
            self.counts["splits"][metadata["split"]] += 1
            if metadata["phrasing"] == 0:
                self.counts["facts"][metadata["kind"]] += 1
        elif table == "dropped":
            self.counts["reasons"][row["metadata"]["reason"]] += 1
        elif table == "sections":
            self.counts["types"][row["type"]] += 1
        elif table == "documents":
            self.counts["characters"]["all"] += row["num_characters"]
            self.counts["characters"]["kept"] += row["kept_characters"]
            for kind, size in row["dropped_characters"].items():
                self.counts["characters"][f"dropped {kind}"] += size

    def summary(self, num_sections_asked: int, seconds: float) -> dict[str, Any]:
        """Counts of everything read, kept and dropped.

        Raises:
            InputError: No section holds a text of which a question can be asked.
        """
        rows, splits, characters = self.counts["rows"], self.counts["splits"], self.counts["characters"]
        if not splits["train"]:
            raise InputError("no question could be asked on the documents for training; give papers with running text")
        return {
            "num_documents": rows["documents"],
            "num_skipped": rows["skipped"],
            "num_sections": rows["sections"],
            "num_sections_without_question": rows["sections"] - num_sections_asked,
            "sections_by_type": dict(self.counts["types"].most_common()),
            "num_questions": rows["questions"],
            "num_facts": self.counts["facts"].total(),
            "num_dropped": rows["dropped"],
            "dropped_by_reason": dict(self.counts["reasons"].most_common()),
            "questions_by_kind": dict(self.counts["kinds"].most_common()),
            "facts_by_kind": dict(self.counts["facts"].most_common()),
            "questions_by_source": dict(self.counts["sources"].most_common()),
            "num_train": splits["train"],
            "num_phrasing": splits["phrasing"],
            "num_test": splits["test"],
            "num_characters": characters["all"],
            "kept_characters": characters["kept"],
            "kept_share": round(characters["kept"] / max(1, characters["all"]), 4),
            "dropped_characters_by_kind": {
                name.removeprefix("dropped "): size for name, size in characters.most_common() if name.startswith("dropped ")
            },
            "seconds": round(seconds, 3),
            "seconds_per_section": round(seconds / max(1, rows["sections"]), 6),
        }
