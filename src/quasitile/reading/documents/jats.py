"""JATS XML, the format of open full-text archives."""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, Section, with_text
from quasitile.reading.documents.markup import (
    Grammar,
    block,
    drop,
    everything,
    inline,
    local_name,
    mathml,
    parse_xml,
    superscript,
    tidy,
)
from quasitile.reading.documents.text import BACK_MATTER
from quasitile.reading.normalise import normalise

DROPPED = {
    "ref-list": "references", "ref": "references", "fig": "figures", "fig-group": "figures", "graphic": "figures",
    "inline-graphic": "figures", "media": "figures", "table-wrap": "tables", "table": "tables", "table-wrap-foot": "tables",
    "table-wrap-group": "tables", "ack": "back matter", "notes": "back matter", "fn-group": "back matter",
    "bio": "back matter", "fn": "footnotes", "supplementary-material": "back matter", "tex-math": "repeated formulae",
    "object-id": "identifiers", "glossary": "back matter",
}  # fmt: skip
CITATION_TYPES = frozenset(("bibr", "ref", "fn", "table-fn"))
_BLOCKS = frozenset([
    "p", "list", "list-item", "disp-formula", "disp-quote", "def-list", "def-item", "boxed-text", "statement",
    "verse-group",
])  # fmt: skip
_BACK_SECTIONS = frozenset(["supplementary-material", "coi-statement", "data-availability"])
_NUMBER_LABEL = re.compile(r"[\d.]+$|[IVX]+\.?$")


def read_jats(path: Path, root: etree._Element | None = None) -> list[Document]:
    """Read one article. Entities are not expanded and nothing is loaded over the network.

    Raises:
        InputError: The file is not well-formed XML, or not a JATS article with text.
    """
    tree = root if root is not None else parse_xml(path)
    if local_name(tree) != "article":
        raise InputError(f"{path} is not a JATS article: its root is <{local_name(tree)}>; convert it to JATS or Markdown")
    title = _plain(tree.find(".//{*}front//{*}title-group/{*}article-title"))
    document = Document(path.stem, str(path), "jats", title or path.stem, _licence(tree))
    _read_abstracts(tree, document)
    for body in tree.iterfind("{*}body"):
        _read_section(body, document, 0, "Main text", "")
    for floats in tree.iterfind("{*}floats-group"):
        document.drop("figures", everything(floats))
    for child in (child for back in tree.iterfind("{*}back") for child in back):
        if local_name(child) == "app-group":
            for appendix in child:
                if _is_back_matter(appendix):
                    document.drop("back matter", everything(appendix))
                else:
                    _read_section(appendix, document, 1, "Appendix", "")
        elif local_name(child) == "sec" and not _is_back_matter(child):
            _read_section(child, document, 1, "Appendix", "")
        else:
            document.drop(DROPPED.get(local_name(child), "back matter"), everything(child))
    return with_text(document)


def _read_abstracts(root: etree._Element, document: Document) -> None:
    """Keep the abstract; graphical and other extra abstracts repeat it and are dropped."""
    for abstract in root.iterfind("{*}front//{*}abstract"):
        if abstract.get("abstract-type") or any(section.type == "abstract" for section in document.sections):
            document.drop("extra abstracts", everything(abstract))
        else:
            _read_section(abstract, document, 0, "Abstract", "abstract")


def _read_section(node: etree._Element, document: Document, level: int, title: str, section_type: str) -> None:
    """Append a section, then its subsections: text after a subsection joins the text before it."""
    paragraphs, subsections = [], []
    for child in node:
        name = local_name(child)
        if name == "title":
            title = normalise(inline(child, document, GRAMMAR)) or title
        elif name == "sec" and _is_back_matter(child):
            document.drop("back matter", everything(child))
        elif name == "sec":
            subsections.append(child)
        elif name == "label" and _NUMBER_LABEL.match(everything(child).strip()):
            document.drop("labels", everything(child))
        else:
            paragraphs.append(block(child, document, GRAMMAR))
            paragraphs.append(child.tail or "")
    text = tidy("\n\n".join([node.text or "", *paragraphs]))
    if text or (subsections and level > 0):
        document.sections.append(Section(title, max(level, 1), section_type, text))
    for child in subsections:
        own_type = child.get("sec-type", "").lower() or section_type
        _read_section(child, document, level + 1, "", own_type)


def _own(node: etree._Element, document: Document) -> str | None:
    """Citations, one of several forms of a formula, superscripts and line breaks."""
    name = local_name(node)
    if name == "xref" and node.get("ref-type") in CITATION_TYPES:
        document.drop("citations", everything(node))
        return ""
    if name == "alternatives":
        return _alternatives(node, document)
    if name == "sup":
        return superscript(inline(node, document, GRAMMAR), node.find("{*}xref") is not None)
    if name == "title":
        return f"\n\n{inline(node, document, GRAMMAR)} "
    return " " if name == "break" else None


def _alternatives(node: etree._Element, document: Document) -> str:
    """One of several forms of the same formula: MathML, otherwise the first."""
    chosen = next((child for child in node if local_name(child) == "math"), None)
    for child in node:
        if child is not chosen:
            drop(child, document, GRAMMAR)
    return "" if chosen is None else f" {mathml(chosen)} "


GRAMMAR = Grammar(DROPPED, _BLOCKS, _own)


def _plain(node: etree._Element | None) -> str:
    """A title's text without account."""
    if node is None:
        return ""
    return normalise(inline(node, Document("", "", "jats", ""), GRAMMAR).replace("\n", " "))


def _is_back_matter(section: etree._Element) -> bool:
    """Whether a section declares interests, thanks or supplements rather than science."""
    title = section.find("{*}title")
    titled = title is not None and BACK_MATTER.match(everything(title).strip())
    return bool(titled) or section.get("sec-type", "").lower() in _BACK_SECTIONS


def _licence(root: etree._Element) -> str:
    """The licence's address where one is given, otherwise its first words."""
    for licence in root.iterfind("{*}front//{*}license"):
        for node in (licence, *licence.iterdescendants()):
            for name, value in node.attrib.items():
                if str(name).endswith("href"):
                    return str(value)
        return normalise(everything(licence).replace("\n", " "))[:200]
    return ""
