"""What readers of XML and HTML share: a parser that nothing hostile gets through, formulae, superscripts."""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import check_size
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
