"""Readers of paper formats: one function a format, from a file to its documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from quasitile.reading.documents.document import Document, Section
from quasitile.reading.documents.html import read_html
from quasitile.reading.documents.latex import read_latex
from quasitile.reading.documents.markdown import read_markdown
from quasitile.reading.documents.pdf import read_pdf
from quasitile.reading.documents.sectioned import read_sectioned
from quasitile.reading.documents.text import read_plain
from quasitile.reading.documents.xml import read_xml

__all__ = ["READERS", "Document", "Section"]

READERS: dict[str, Callable[[Path], Iterable[Document]]] = {
    ".xml": read_xml,
    ".nxml": read_xml,
    ".tei": read_xml,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_xml,
    ".pdf": read_pdf,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".tex": read_latex,
    ".txt": read_plain,
    ".jsonl": read_sectioned,
}
