"""JSON lines of documents already cut into sections: many documents in one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.reading.documents.document import MAX_FILE_BYTES, Document, Section
from quasitile.reading.documents.text import BACK_MATTER, REFERENCES
from quasitile.reading.normalise import count_words, dehyphenate, normalise

_TEX = re.compile(r"\\documentclass.*?\\end\{document\}", re.DOTALL)  # formulae that a publisher repeats as a LaTeX file


def read_sectioned(path: Path) -> Iterator[Document]:
    """Read rows `{"doc_id", "title", "license", "kind", "sections": [{"title", "text"}]}`; the last three may be absent.

    Rows are read one after another, so a file may be larger than memory.

    Raises:
        InputError: A row (named by its line) is not such an object, or the file holds none.
    """
    found = False
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_FILE_BYTES + 1):
            number += 1
            if len(line) > MAX_FILE_BYTES:
                raise InputError(f"{path}:{number} is longer than {MAX_FILE_BYTES / 1e6:.0f} MB; split or remove the line")
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number} is not valid JSON ({error}); mend or remove the line") from error
            found = True
            yield _document(row, path, number)
    if not found:
        raise InputError(f"{path} is empty; remove it or fill it")


def _document(row: Any, path: Path, number: int) -> Document:
    where = f"{path}:{number}"
    if not isinstance(row, dict) or not isinstance(row.get("sections"), list):
        raise InputError(f'{where} has no "sections" list; expected {{"doc_id", "title", "sections": [{{"title", "text"}}]}}')
    name = normalise(str(row.get("doc_id") or f"{path.stem}-{number}"))
    document = Document(
        name, str(path), "jsonl", normalise(str(row.get("title") or name)), normalise(str(row.get("license") or ""))
    )
    document.kind = str(row.get("kind") or "article")
    sections = []
    for section in row["sections"]:
        if isinstance(section, dict) and "\\documentclass" in str(section.get("text")):
            for formula in _TEX.findall(section["text"]):
                document.drop("repeated formulae", formula)
            section["text"] = _TEX.sub(" ", section["text"])
        if not isinstance(section, dict) or not isinstance(section.get("text"), str):
            raise InputError(f'{where} has a section without "text"; expected {{"title", "text"}}')
        sections.append((normalise(str(section.get("title") or "")), normalise(section["text"])))
    vocabulary = count_words("\n\n".join(text for _, text in sections))
    for title, text in sections:
        if REFERENCES.match(title) or BACK_MATTER.match(title):
            document.drop("references" if REFERENCES.match(title) else "back matter", text)
        else:
            document.sections.append(Section(title, 1 + title.count(" / "), "", dehyphenate(text, vocabulary)))
    return document
