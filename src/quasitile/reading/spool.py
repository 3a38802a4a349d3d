"""Documents as read, on disk until their questions are asked: splits need all names before the first question."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import TextIO

from quasitile.reading.documents.document import Document, Section


class Spool:
    """A temporary file of documents; names are unique, and what is held of each in memory is its name and path."""

    def __init__(self) -> None:
        self.file: TextIO = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.names: list[str] = []
        self.paths: list[str] = []
        self._known: set[str] = set()

    def add(self, document: Document) -> None:
        """Append a document; one whose name is taken gets its path without the ending, or a number."""
        number, name = 2, document.name
        if name in self._known:
            name = document.path.rpartition(".")[0]
        while name in self._known:
            name = f"{document.name}-{number}"
            number += 1
        document.name = name
        self._known.add(name)
        self.names.append(name)
        self.paths.append(document.path)
        document.removed = []
        self.file.write(json.dumps(asdict(document)) + "\n")

    def mark(self) -> tuple[int, int]:
        """Where the next document will lie."""
        return self.file.tell(), len(self.names)

    def cut(self, mark: tuple[int, int]) -> None:
        """Take back what was added after `mark`."""
        position, size = mark
        self.file.seek(position)
        self.file.truncate()
        self._known.difference_update(self.names[size:])
        del self.names[size:], self.paths[size:]

    def close(self) -> None:
        """Remove the file."""
        self.file.close()

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Document]:
        self.file.seek(0)
        for line in self.file:
            row = json.loads(line)
            sections = [Section(**{**section, "path": tuple(section["path"])}) for section in row.pop("sections")]
            yield Document(**row, sections=sections)
