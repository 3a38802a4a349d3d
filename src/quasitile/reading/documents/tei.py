"""TEI XML as GROBID writes it from PDF: sections whose headings carry their number."""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, Section
from quasitile.reading.documents.markup import everything, local_name, mathml, parse_xml, superscript, tidy
from quasitile.reading.normalise import count_words, dehyphenate, normalise

DROPPED = {
    "figure": "figures", "figDesc": "captions", "table": "tables", "graphic": "figures", "note": "footnotes",
    "listBibl": "references", "biblStruct": "references", "bibl": "references", "label": "identifiers", "fw": "page headers",
}  # fmt: skip
DROPPED_DIVISIONS = {
    "references": "references", "acknowledgement": "back matter", "funding": "back matter", "availability": "back matter",
    "contribution": "back matter", "conflict": "back matter",
}  # fmt: skip
_BLOCKS = frozenset(["p", "formula", "list", "item", "quote", "lg", "l", "ab"])


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
    if not any(section.text for section in document.sections):
        raise InputError(f"{path} has no text in its abstract or body; it may be a stub of metadata")
    vocabulary = count_words("\n\n".join(section.text for section in document.sections))
    document.sections = [
        Section(section.title, section.level, section.type, dehyphenate(section.text, vocabulary))
        for section in document.sections
    ]
    return [document]


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
            title = normalise(_inline(child, document).replace("\n", " ")) or title
            number = child.get("n", "").strip(".")
            level = max(level, 1 + number.count(".")) if number else level
        elif name == "div":
            below.append(child)
        else:
            blocks += [_block(child, document), child.tail or ""]
    text = tidy("\n\n".join(blocks))
    headed = node.find("{*}head") is not None
    if text or (below and headed):
        document.sections.append(Section(title, max(level, 1), section_type, text))
    for child in below:
        _division(child, document, level + 1 if headed or level == 0 else level, title, section_type)


def _block(node: etree._Element, document: Document) -> str:
    name = local_name(node)
    if name in DROPPED:
        _drop(node, document)
        return ""
    return _inline(node, document)


def _inline(node: etree._Element, document: Document) -> str:
    parts = [node.text or ""]
    for child in node:
        parts += [_child(child, document), child.tail or ""]
    return "".join(parts)


def _child(node: etree._Element, document: Document) -> str:
    name = local_name(node)
    if isinstance(node, etree._Entity):
        document.drop("entities", node.text or "")
        return " "
    if name in DROPPED:
        _drop(node, document)
        return " "
    if name == "ref" and node.get("type") in ("bibr", "foot"):
        document.drop("citations", everything(node))
        return ""
    if name == "math":
        return f" {mathml(node)} "
    if name == "hi" and node.get("rend") in ("superscript", "sup"):
        return superscript(_inline(node, document), cites=False)
    if name == "lb":
        return " "
    text = _inline(node, document)
    return f"\n\n{text}\n\n" if name in _BLOCKS else text


def _drop(node: etree._Element, document: Document) -> None:
    """Count a figure's caption apart from what else it holds."""
    if local_name(node) == "figure":
        for child in node:
            kind = "tables" if node.get("type") == "table" else DROPPED.get(local_name(child), "captions")
            document.drop(kind, everything(child))
            document.drop("figures", child.tail or "")
        document.drop("figures", node.text or "")
    else:
        document.drop(DROPPED[local_name(node)], everything(node))


def _licence(root: etree._Element) -> str:
    for licence in root.iterfind(".//{*}publicationStmt//{*}licence"):
        return licence.get("target") or re.sub(r"\s+", " ", everything(licence)).strip()[:200]
    return ""
