"""HTML articles: headings, paragraphs and lists of the main part; what surrounds it is counted and left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from quasitile.errors import InputError
from quasitile.reading.documents.document import Document, Section, read_text, with_text
from quasitile.reading.documents.markup import everything, local_name, mathml, superscript, tidy
from quasitile.reading.documents.mathematics import math_to_text
from quasitile.reading.documents.text import REFERENCES
from quasitile.reading.normalise import normalise

MAX_DEPTH = 250  # elements inside each other; a page has some thirty
DROPPED = {
    "script": "code", "style": "code", "template": "code", "pre": "code", "noscript": "markup", "svg": "figures",
    "canvas": "figures", "img": "figures", "picture": "figures", "video": "figures", "audio": "figures", "object": "figures",
    "iframe": "figures", "figure": "figures", "figcaption": "captions", "table": "tables", "nav": "navigation",
    "header": "navigation", "footer": "navigation", "aside": "navigation", "form": "navigation", "button": "navigation",
    "select": "navigation", "textarea": "navigation", "dialog": "navigation", "menu": "navigation", "head": "front matter",
}  # fmt: skip
_BLOCKS = frozenset([
    "p", "div", "section", "article", "main", "ul", "ol", "li", "dl", "dt", "dd", "blockquote", "address", "details",
    "summary", "center", "hr", "body", "html",
])  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CITING = re.compile(r"(?:bib|cit|ref-?\d|fn|foot)", re.IGNORECASE)
_CITED = re.compile(r"[\[(]?\d+(?:\s?[,\u2013-]\s?\d+)*[\])]?$")
_TEX = re.compile(r"\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def read_html(path: Path, root: etree._Element | None = None) -> list[Document]:
    """Read one page. No script runs and nothing is loaded.

    Raises:
        InputError: The file has no text, or is nested beyond `MAX_DEPTH`.
    """
    if root is None:
        parser = etree.HTMLParser(no_network=True, huge_tree=False, remove_comments=True, remove_pis=True, encoding="utf-8")
        try:
            root = etree.fromstring(read_text(path).encode(), parser)
        except (etree.XMLSyntaxError, ValueError) as error:
            raise InputError(f"{path} cannot be read as HTML ({' '.join(str(error).split())}); mend or remove it") from error
    if root is None:
        raise InputError(f"{path} holds no elements; it is not HTML")
    if _depth(root) > MAX_DEPTH:
        raise InputError(f"{path} is nested more than {MAX_DEPTH} elements deep; simplify or remove it")
    document = Document(path.stem, str(path), "html", _title(root), _licence(root))
    body = next(_all(root, "body"), root)
    main = next(_all(body, "article"), None)
    main = main if main is not None else next(_all(body, "main"), body)
    for outside in _outside(body, main):
        document.drop(*outside)
    reader = _Reader(document)
    reader.walk(main)
    reader.close()
    document.title = document.title or path.stem
    return with_text(document)


class _Reader:
    """Collects blocks under the heading they stand below."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.title, self.level, self.type = "Main text", 1, ""
        self.parts: list[str] = []

    def close(self) -> None:
        """Append what was read since the last heading."""
        text = tidy("".join(self.parts))
        self.parts = []
        if REFERENCES.match(self.title):
            self.document.drop("references", text)
        elif text or self.title != "Main text":
            self.document.sections.append(Section(self.title, self.level, self.type, text))

    def walk(self, node: etree._Element) -> None:
        """Read an element's text and its children."""
        self.parts.append(node.text or "")
        for child in node:
            self._child(child)
            self.parts.append(child.tail or "")

    def _child(self, node: etree._Element) -> None:
        name = local_name(node)
        if isinstance(node, etree._Entity):
            self.document.drop("entities", node.text or "")
        elif name in _HEADINGS:
            self._heading(_HEADINGS[name], node)
        elif name == "math":
            self.parts.append(_formula(node, self.document))
        elif name in DROPPED or node.get("hidden") is not None or node.get("aria-hidden") == "true":
            _drop(node, self.document)
            self.parts.append(" ")
        elif name == "a" and _cites(node):
            self.document.drop("citations", everything(node))
        elif name == "sup":
            inside = _Reader(self.document)
            inside.walk(node)
            cites = any(_cites(link) for link in node.iterdescendants("a"))
            self.parts.append(superscript("".join(inside.parts), cites))
        elif name == "br":
            self.parts.append(" ")
        elif name in _BLOCKS:
            self.parts.append("\n\n")
            self.walk(node)
            self.parts.append("\n\n")
        else:
            self.walk(node)

    def _heading(self, level: int, node: etree._Element) -> None:
        title = normalise(everything(node).replace("\n", " "))
        if level == 1 and not self.document.sections and not "".join(self.parts).strip():
            self.document.title = title or self.document.title
            return
        self.close()
        self.title, self.level = title or "Main text", max(level - 1, 1)


def _formula(node: etree._Element, document: Document) -> str:
    """MathML by its tree, or by the LaTeX it carries; the copy is counted."""
    for annotation in [*_all(node, "annotation"), *_all(node, "annotation-xml")]:
        document.drop("repeated formulae", everything(annotation))
        parent = annotation.getparent()
        if parent is not None:
            parent.remove(annotation)
    return f" {mathml(node).strip() or math_to_text(node.get('alttext', ''))} "


def _drop(node: etree._Element, document: Document) -> None:
    name = local_name(node)
    if name == "figure":
        for child in node:
            document.drop(DROPPED.get(local_name(child), "figures"), everything(child))
            document.drop("figures", child.tail or "")
        document.drop("figures", node.text or "")
    else:
        document.drop(DROPPED.get(name, "hidden"), everything(node))


def _cites(node: etree._Element) -> bool:
    """Whether a link is a citation: a number that points to an entry of a list."""
    target = node.get("href", "").rpartition("#")[2]
    marked = _CITING.match(target) or "cite" in f"{node.get('class', '')} {node.get('role', '')} {node.get('rel', '')}"
    return bool(marked and _CITED.match(everything(node).strip()))


def _outside(body: etree._Element, main: etree._Element) -> Iterator[tuple[str, str]]:
    """Text of the body that stands outside its main part."""
    node = main
    while node is not body:
        parent = node.getparent()
        if parent is None:
            return
        yield "navigation", parent.text or ""
        for sibling in parent:
            yield "navigation", (everything(sibling) if sibling is not node else "") + (sibling.tail or "")
        node = parent


def _title(root: etree._Element) -> str:
    for node in root.iterdescendants("meta"):
        if node.get("name", "").lower() in ("citation_title", "dc.title"):
            return normalise(node.get("content", ""))
    return next((normalise(everything(node).replace("\n", " ")) for node in _all(root, "title")), "")


def _licence(root: etree._Element) -> str:
    for node in root.iterdescendants("link", "a"):
        if "license" in node.get("rel", ""):
            return node.get("href", "")
    return ""


def _all(node: etree._Element, name: str) -> Iterator[etree._Element]:
    return (each for each in list(node.iter("{*}*")) if local_name(each) == name)


def _depth(root: etree._Element) -> int:
    """How deep the tree is, without recursion."""
    deepest, waiting = 0, [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            break
        waiting += [(child, depth + 1) for child in node]
    return deepest
