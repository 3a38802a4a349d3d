"""XML by its root: JATS, TEI or XHTML."""

from __future__ import annotations

from pathlib import Path

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document
from quasitile.reading.documents.html import read_html
from quasitile.reading.documents.jats import read_jats
from quasitile.reading.documents.markup import local_name, parse_xml
from quasitile.reading.documents.tei import read_tei

ROOTS = {"article": read_jats, "TEI": read_tei, "html": read_html}


def read_xml(path: Path) -> list[Document]:
    """Read one XML file.

    Raises:
        InputError: It is not well-formed, or its root is none of `ROOTS`.
    """
    root = parse_xml(path)
    read = ROOTS.get(local_name(root))
    if read is None:
        raise InputError(f"{path} has the root <{local_name(root)}>; known are JATS <article>, <TEI> and <html>: convert it")
    return read(path, root)
