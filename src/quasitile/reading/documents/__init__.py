"""Readers of paper formats: one function a format, from a file to its documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quasitile.reading.documents.document import Document, Section
from quasitile.reading.documents.jats import read_jats
from quasitile.reading.documents.latex import read_latex
from quasitile.reading.documents.markdown import read_markdown
from quasitile.reading.documents.sectioned import read_sectioned
from quasitile.reading.documents.text import read_plain

__all__ = ["READERS", "Document", "Section"]

READERS: dict[str, Callable[[Path], list[Document]]] = {
    ".xml": read_jats,
    ".nxml": read_jats,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".tex": read_latex,
    ".txt": read_plain,
    ".jsonl": read_sectioned,
}
