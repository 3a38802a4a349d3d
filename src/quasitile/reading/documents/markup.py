"""What readers of XML and HTML share: a parser that nothing hostile gets through, formulae, superscripts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, check_size
from quasitile.reading.normalise import normalise

EMPTY_BRACKETS = re.compile(r"\s?[\[(](?:[\s,;\-\u2013]|and|see|e\.g\.)*[\])]")
LOOSE_COMMA = re.compile(r"\s+(?=[,.;](?:\s|$))")


def parse_xml(path: Path) -> etree._Element:
    """The root of an XML file. Entities are not expanded, nothing is loaded, depth and text are limited by the parser.

    Raises:
        InputError: The file is too large or not well-formed.
    """
    check_size(path)
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        return etree.parse(str(path), parser).getroot()
    except (etree.XMLSyntaxError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not well-formed XML ({reason}); mend or remove it") from error


@dataclass(frozen=True)
class Grammar:
    """What the elements of a format mean in running text.

    `dropped` names elements that are left out and the kind they are counted as; `blocks` stand in paragraphs of their own.
    `own` reads what the format writes in a way of its own, and gives nothing for the rest.
    """

    dropped: dict[str, str]
    blocks: frozenset[str]
    own: Callable[[etree._Element, Document], str | None]


def inline(node: etree._Element, document: Document, grammar: Grammar) -> str:
    """The text of an element and its children, with formulae and block breaks."""
    parts = [node.text or ""]
    for child in node:
        parts += [_child(child, document, grammar), child.tail or ""]
    return "".join(parts)


def block(node: etree._Element, document: Document, grammar: Grammar) -> str:
    """A block's text, paragraphs in it separated by blank lines."""
    if isinstance(node, etree._Entity) or local_name(node) in grammar.dropped:
        drop(node, document, grammar)
        return ""
    return inline(node, document, grammar)


def _child(node: etree._Element, document: Document, grammar: Grammar) -> str:
    name = local_name(node)
    if isinstance(node, etree._Entity) or name in grammar.dropped:
        drop(node, document, grammar)
        return " "
    text = grammar.own(node, document)
    if text is not None:
        return text
    if name == "math":
        return f" {mathml(node)} "
    text = inline(node, document, grammar)
    return f"\n\n{text}\n\n" if name in grammar.blocks else text


def drop(node: etree._Element, document: Document, grammar: Grammar) -> None:
    """Count an element as left out; a figure's caption apart from what else it holds."""
    name = local_name(node)
    if isinstance(node, etree._Entity):
        document.drop("entities", node.text or "")
        return
    kind = grammar.dropped.get(name, "other")
    if kind != "figures" or not len(node):
        document.drop(kind, everything(node))
        return
    for child in node:
        tables = "tables" if node.get("type") == "table" else ""
        document.drop(tables or grammar.dropped.get(local_name(child), "captions"), everything(child))
        document.drop(kind, child.tail or "")
    document.drop(kind, node.text or "")


def superscript(text: str, cites: bool) -> str:
    """`^2` for exponents and charges; what remains of a superscript citation (commas, dashes) goes."""
    text = text.strip()
    is_charge = text in ("+", "-", "\u2212", "*", "\u2013") and not cites
    return f"^{text}" if is_charge or re.search(r"\w", text) else ""


def mathml(node: etree._Element) -> str:
    """Presentation MathML on one line."""
    name = local_name(node)
    if len(node) == 0:
        return (node.text or "").strip()
    parts = [mathml(child) for child in node]
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


def tidy(text: str) -> str:
    """Normalise after citations were taken out: no empty brackets, no blank before a comma."""
    return normalise(LOOSE_COMMA.sub("", EMPTY_BRACKETS.sub("", normalise(text))))


def everything(node: etree._Element) -> str:
    """All text inside an element."""
    return "".join(node.itertext())


def local_name(node: etree._Element) -> str:
    """The element's local name."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""
