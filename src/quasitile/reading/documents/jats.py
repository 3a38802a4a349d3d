"""JATS XML, the format of open full-text archives."""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, Section
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
_BACK_TITLE = re.compile(
    r"(?:conflicts? of interests?|competing interests?|supplementary|supporting information|acknowledge?ments?|funding|"
    r"author contributions|data availability)",
    re.IGNORECASE,
)
_EMPTY_BRACKETS = re.compile(r"\s?[\[(](?:[\s,;\-\u2013]|and|see|e\.g\.)*[\])]")
_LOOSE_COMMA = re.compile(r"\s+(?=[,.;](?:\s|$))")
_NUMBER_LABEL = re.compile(r"[\d.]+$|[IVX]+\.?$")


def read_jats(path: Path) -> list[Document]:
    """Read one article. Entities are not expanded and nothing is loaded over the network.

    Raises:
        InputError: The file is not well-formed XML, or not a JATS article with text.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.parse(str(path), parser).getroot()
    except (etree.XMLSyntaxError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not well-formed XML ({reason}); mend or remove it") from error
    if _name(root) != "article":
        raise InputError(f"{path} is not a JATS article: its root is <{_name(root)}>; convert it to JATS or Markdown")
    title = _plain(root.find(".//{*}front//{*}title-group/{*}article-title"))
    document = Document(path.stem, str(path), "jats", title or path.stem, _licence(root))
    _read_abstracts(root, document)
    for body in root.iterfind("{*}body"):
        _read_section(body, document, 0, "Main text", "")
    for floats in root.iterfind("{*}floats-group"):
        document.drop("figures", _everything(floats))
    for child in (child for back in root.iterfind("{*}back") for child in back):
        if _name(child) == "app-group":
            for appendix in child:
                if _is_back_matter(appendix):
                    document.drop("back matter", _everything(appendix))
                else:
                    _read_section(appendix, document, 1, "Appendix", "")
        elif _name(child) == "sec" and not _is_back_matter(child):
            _read_section(child, document, 1, "Appendix", "")
        else:
            document.drop(DROPPED.get(_name(child), "back matter"), _everything(child))
    if not document.sections:
        raise InputError(f"{path} has no text in its abstract or body; it may be a stub of metadata")
    return [document]


def _read_abstracts(root: etree._Element, document: Document) -> None:
    """Keep the abstract; graphical and other extra abstracts repeat it and are dropped."""
    for abstract in root.iterfind("{*}front//{*}abstract"):
        if abstract.get("abstract-type") or any(section.type == "abstract" for section in document.sections):
            document.drop("extra abstracts", _everything(abstract))
        else:
            _read_section(abstract, document, 0, "Abstract", "abstract")


def _read_section(node: etree._Element, document: Document, level: int, title: str, section_type: str) -> None:
    """Append a section, then its subsections: text after a subsection joins the text before it."""
    paragraphs, subsections = [], []
    for child in node:
        name = _name(child)
        if name == "title":
            title = normalise(_inline(child, document)) or title
        elif name == "sec" and _is_back_matter(child):
            document.drop("back matter", _everything(child))
        elif name == "sec":
            subsections.append(child)
        elif name == "label" and _NUMBER_LABEL.match(_everything(child).strip()):
            continue
        else:
            paragraphs.append(_block(child, document))
            paragraphs.append(child.tail or "")
    text = _tidy("\n\n".join([node.text or "", *paragraphs]))
    if text or (subsections and level > 0):
        document.sections.append(Section(title, max(level, 1), section_type, text))
    for child in subsections:
        own_type = child.get("sec-type", "").lower() or section_type
        _read_section(child, document, level + 1, "", own_type)


def _block(node: etree._Element, document: Document) -> str:
    """A block's text, paragraphs separated by blank lines."""
    if _name(node) in DROPPED or isinstance(node, etree._Entity):
        _drop(node, document)
        return ""
    return _inline(node, document)


def _inline(node: etree._Element, document: Document) -> str:
    """The text of an element and its children, with sub- and superscripts, formulae and block breaks."""
    parts = [node.text or ""]
    for child in node:
        parts.append(_child(child, document))
        parts.append(child.tail or "")
    return "".join(parts)


def _child(node: etree._Element, document: Document) -> str:
    name = _name(node)
    if name in DROPPED or isinstance(node, etree._Entity):
        _drop(node, document)
        return " "
    if name == "xref":
        if node.get("ref-type") in CITATION_TYPES:
            document.drop("citations", _everything(node))
            return ""
        return _inline(node, document)
    if name == "alternatives":
        return _alternatives(node, document)
    if name == "math":
        return f" {_mathml(node)} "
    if name == "sup":
        return _superscript(_inline(node, document), node.find("{*}xref") is not None)
    if name == "break":
        return " "
    text = _inline(node, document)
    return f"\n\n{text}\n\n" if name in _BLOCKS else f"\n\n{text} " if name == "title" else text


def _alternatives(node: etree._Element, document: Document) -> str:
    """One of several forms of the same formula: MathML, otherwise the first."""
    chosen = next((child for child in node if _name(child) == "math"), None)
    for child in node:
        if child is not chosen:
            _drop(child, document)
    return "" if chosen is None else f" {_mathml(chosen)} "


def _superscript(text: str, cites: bool) -> str:
    """`^2` for exponents and charges; what remains of a superscript citation (commas, dashes) goes."""
    text = text.strip()
    is_charge = text in ("+", "-", "\u2212", "*", "\u2013") and not cites
    return f"^{text}" if is_charge or re.search(r"\w", text) else ""


def _mathml(node: etree._Element) -> str:
    """Presentation MathML on one line."""
    name = _name(node)
    if len(node) == 0:
        return (node.text or "").strip()
    parts = [_mathml(child) for child in node]
    if name == "msub" and len(parts) == 2:
        return f"{parts[0]}{parts[1]}" if re.fullmatch(r"[\d.xy+-]*", parts[1]) else f"{parts[0]}_{parts[1]}"
    if name == "msup" and len(parts) == 2:
        return f"{parts[0]}^{parts[1]}"
    if name == "msubsup" and len(parts) == 3:
        return f"{parts[0]}_{parts[1]}^{parts[2]}"
    if name == "mfrac" and len(parts) == 2:
        return f"({parts[0]})/({parts[1]})"
    if name == "msqrt":
        return f"√({' '.join(parts)})"
    if name == "mfenced":
        return f"({', '.join(parts)})"
    return "".join(f" {part} " if part in ("=", "+", "<", ">", "≈", "×") else part for part in parts)


def _tidy(text: str) -> str:
    """Normalise after citations were taken out: no empty brackets, no blank before a comma."""
    return normalise(_LOOSE_COMMA.sub("", _EMPTY_BRACKETS.sub("", normalise(text))))


def _drop(node: etree._Element, document: Document) -> None:
    if isinstance(node, etree._Entity):
        document.drop("entities", node.text or "")
    else:
        document.drop(DROPPED.get(_name(node), "other"), _everything(node))


def _everything(node: etree._Element) -> str:
    return "".join(node.itertext(with_tail=False))


def _plain(node: etree._Element | None) -> str:
    """A title's text without account."""
    if node is None:
        return ""
    return normalise(_inline(node, Document("", "", "jats", "")).replace("\n", " "))


def _is_back_matter(section: etree._Element) -> bool:
    """Whether a section declares interests, thanks or supplements rather than science."""
    title = section.find("{*}title")
    titled = title is not None and _BACK_TITLE.match(_everything(title).strip())
    return bool(titled) or section.get("sec-type", "").lower() in _BACK_SECTIONS


def _licence(root: etree._Element) -> str:
    """The licence's address where one is given, otherwise its first words."""
    for licence in root.iterfind("{*}front//{*}license"):
        for node in (licence, *licence.iterdescendants()):
            for name, value in node.attrib.items():
                if str(name).endswith("href"):
                    return str(value)
        return normalise(_everything(licence).replace("\n", " "))[:200]
    return ""


def _name(node: etree._Element) -> str:
    """The element's local name."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""
