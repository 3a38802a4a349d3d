"""TEI XML as GROBID writes it from PDF: sections whose headings carry their number."""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, Section, with_text
from quasitile.reading.documents.markup import Grammar, block, everything, inline, local_name, parse_xml, superscript, tidy
from quasitile.reading.normalise import count_words, dehyphenate, normalise

DROPPED = {
    "figure": "figures", "figDesc": "captions", "table": "tables", "graphic": "figures", "note": "footnotes",
    "listBibl": "references", "biblStruct": "references", "bibl": "references", "label": "identifiers", "fw": "page headers",
}  # fmt: skip
DROPPED_DIVISIONS = {
    "references": "references", "acknowledgement": "back matter", "funding": "back matter", "availability": "back matter",
    "contribution": "back matter", "conflict": "back matter",
}  # fmt: skip


def read_tei(path: Path, root: etree._Element | None = None) -> list[Document]:
    """Read one TEI document.

    Raises:
        InputError: The file is not well-formed, not TEI, or without text.
    """
    tree = root if root is not None else parse_xml(path)
    if local_name(tree) != "TEI":
        raise InputError(f"{path} is not TEI: its root is <{local_name(tree)}>; convert it to TEI or JATS")
    titles = [normalise(everything(node).replace("\n", " ")) for node in tree.iterfind(".//{*}titleStmt/{*}title")]
    document = Document(path.stem, str(path), "tei", next(filter(None, titles), path.stem), _licence(tree))
    for abstract in tree.iterfind(".//{*}profileDesc/{*}abstract"):
        _division(abstract, document, 1, "Abstract", "abstract")
    for text in tree.iterfind("{*}text"):
        for part in text:
            if local_name(part) in ("front", "body"):
                _division(part, document, 0, "Main text", "")
            else:
                _back(part, document)
    vocabulary = count_words("\n\n".join(section.text for section in document.sections))
    document.sections = [
        Section(section.title, section.level, section.type, dehyphenate(section.text, vocabulary))
        for section in document.sections
    ]
    return with_text(document)


def _back(part: etree._Element, document: Document) -> None:
    """Appendices are read; references and declarations are counted."""
    for division in part:
        kind = DROPPED_DIVISIONS.get(division.get("type", ""), DROPPED.get(local_name(division), ""))
        if local_name(division) == "div" and not kind:
            _division(division, document, 1, "Appendix", "")
        else:
            document.drop(kind or "back matter", everything(division))


def _division(node: etree._Element, document: Document, level: int, title: str, section_type: str) -> None:
    """Append a division, then those inside it. GROBID writes them flat: the level then follows from the number (`2.1`)."""
    blocks, below = [node.text or ""], []
    for child in node:
        name = local_name(child)
        if name == "head":
            title = normalise(inline(child, document, GRAMMAR).replace("\n", " ")) or title
            number = child.get("n", "").strip(".")
            level = max(level, 1 + number.count(".")) if number else level
        elif name == "div":
            below.append(child)
        else:
            blocks += [block(child, document, GRAMMAR), child.tail or ""]
    text = tidy("\n\n".join(blocks))
    headed = node.find("{*}head") is not None
    if text or (below and headed):
        document.sections.append(Section(title, max(level, 1), section_type, text))
    for child in below:
        _division(child, document, level + 1 if headed or level == 0 else level, title, section_type)


def _own(node: etree._Element, document: Document) -> str | None:
    """Citations, superscripts and line breaks."""
    name = local_name(node)
    if name == "ref" and node.get("type") in ("bibr", "foot"):
        document.drop("citations", everything(node))
        return ""
    if name == "hi" and node.get("rend") in ("superscript", "sup"):
        return superscript(inline(node, document, GRAMMAR), cites=False)
    return " " if name == "lb" else None


GRAMMAR = Grammar(DROPPED, frozenset(["p", "formula", "list", "item", "quote", "lg", "l", "ab"]), _own)


def _licence(root: etree._Element) -> str:
    for licence in root.iterfind(".//{*}publicationStmt//{*}licence"):
        return licence.get("target") or re.sub(r"\s+", " ", everything(licence)).strip()[:200]
    return ""
