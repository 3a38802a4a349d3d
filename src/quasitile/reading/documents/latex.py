"""LaTeX articles: sections, abstract, and text with mathematics kept readable."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from quasitile.reading.documents.document import Document, Section, with_text
from quasitile.reading.documents.latex_source import load_source, read_group
from quasitile.reading.documents.mathematics import SYMBOLS, math_to_text
from quasitile.reading.documents.siunitx import chemistry_to_text, number_to_text, quantity_to_text, unit_to_text
from quasitile.reading.documents.text import REFERENCES
from quasitile.reading.normalise import normalise

LEVELS = {"part": 1, "chapter": 1, "section": 1, "subsection": 2, "subsubsection": 3, "paragraph": 4}
DROPPED_ENVIRONMENTS = {
    "figure": "figures", "figure*": "figures", "wrapfigure": "figures", "table": "tables", "table*": "tables",
    "tabular": "tables", "longtable": "tables", "thebibliography": "references", "algorithm": "code", "CJK": "other",
}  # fmt: skip
# Commands whose argument is not text, by what they are counted as; None is not counted.
DROPPED_COMMANDS = {
    "footnote": "footnotes", "footnotetext": "footnotes", "thanks": "footnotes", "ref": "cross references",
    "eqref": "cross references", "autoref": "cross references", "cref": "cross references", "Cref": "cross references",
    "label": None, "bibliography": None, "bibliographystyle": None, "includegraphics": None, "vspace": None, "hspace": None,
    "pagestyle": None, "thispagestyle": None, "author": "front matter", "affiliation": "front matter",
    "date": "front matter", "email": "front matter", "keywords": "front matter", "url": None, "pacs": None,
    "setcounter": None, "caption": "captions",
}  # fmt: skip
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307"}
_LETTER_ACCENTS = {"c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328", "r": "\u030a"}
_LETTERS = {"ss": "ß", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "ae": "æ", "AE": "Æ", "aa": "å", "AA": "Å", "oe": "œ", "i": "ı"}
_MATH_ENVIRONMENTS = "equation|align|gather|multline|eqnarray|displaymath|math|flalign"
_MATH = re.compile(
    rf"\\begin\{{({_MATH_ENVIRONMENTS})(\*?)\}}(.+?)\\end\{{\1\2\}}|\$\$(.+?)\$\$|\\\[(.+?)\\\]|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)",
    re.DOTALL,
)
_ENVIRONMENT = re.compile(r"\\begin\{(" + "|".join(map(re.escape, DROPPED_ENVIRONMENTS)) + r")\}.*?\\end\{\1\}", re.DOTALL)
_HEADING = re.compile(
    r"\\(" + "|".join(LEVELS) + r")\*?\s*(?:\[[^\]]*\]\s*)?(?=\{)|\\(begin|end)\{abstract\}|\\abstract\s*(?=\{)"
)
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)\*?|(.))", re.DOTALL)
_PLACE = "\ue000{}\ue001"


def read_latex(path: Path) -> list[Document]:
    """Read an article with everything it inputs.

    Raises:
        InputError: An input is missing, or no text is left.
    """
    document = Document(path.stem, str(path), "latex", path.stem)
    source = load_source(path, document)
    title = re.search(r"\\title\s*(?:\[[^\]]*\]\s*)?(?=\{)", source)
    if title:
        document.title = normalise(_render(read_group(source, title.end())[0], Document("", "", "", ""))) or path.stem
        source = source[: title.start()] + source[read_group(source, title.end())[1] :]
    body = re.search(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", source, re.DOTALL)
    if body:
        # The preamble may hold an abstract (REVTeX, AASTeX macros); otherwise it is not text.
        source = body[1]

    def drop(match: re.Match[str]) -> str:
        document.drop(DROPPED_ENVIRONMENTS[match[1]], match[0])
        return " "

    source = _ENVIRONMENT.sub(drop, source)
    for name, level, section_type, text in _split(source):
        rendered = normalise(_render(text, document))
        if REFERENCES.match(name):
            document.drop("references", rendered)
        elif rendered or name != "Main text":
            document.sections.append(Section(name, level, section_type, rendered))
    return with_text(document)


def _split(source: str) -> list[tuple[str, int, str, str]]:
    """Cut the body at headings into title, level, type and LaTeX."""
    found, title, level, section_type, start = [], "Main text", 1, "", 0
    for match in _HEADING.finditer(source):
        if match.start() < start:
            continue
        found.append((title, level, section_type, source[start : match.start()]))
        start = match.end()
        if match[1]:
            heading, start = read_group(source, match.end())
            title, level, section_type = normalise(_render(heading, Document("", "", "", ""))), LEVELS[match[1]], ""
        elif match[2] == "end":
            title, level, section_type = "Main text", 1, ""
        elif match[2] == "begin":
            title, level, section_type = "Abstract", 1, "abstract"
        else:
            text, start = read_group(source, match.end())
            found.append(("Abstract", 1, "abstract", text))
            title, level, section_type = "Main text", 1, ""
    return [*found, (title, level, section_type, source[start:])]


def _render(source: str, document: Document) -> str:
    """LaTeX as text: mathematics first, out of reach of the rest, then commands."""
    formulae: list[str] = []

    def hide(match: re.Match[str]) -> str:
        formula = match[3] or match[4] or match[5] or match[6] or match[7]
        formulae.append(math_to_text(_commands(formula, document, mathematics=True)))
        return _PLACE.format(len(formulae) - 1)

    text = _commands(_MATH.sub(hide, source), document)
    text = text.replace("``", '"').replace("''", '"').replace("---", "\u2014").replace("--", "\u2013")
    text = re.sub(r"[{}]", "", text.replace("~", " "))
    text = re.sub(r"\s+(?=[,.;](?:\s|$))|\s?\(\s*\)|\s?\[\s*\]", "", text)
    text = text.replace("\ue002", "{").replace("\ue003", "}")
    return re.sub("\ue000(\\d+)\ue001", lambda match: formulae[int(match[1])], text)


def _commands(source: str, document: Document, mathematics: bool = False) -> str:
    """Replace commands from left to right; inside mathematics only those of siunitx and mhchem."""
    parts, start = [], 0
    for match in _COMMAND.finditer(source):
        if match.start() < start:
            continue
        name = match[1]
        if mathematics and name not in PRINTED:
            continue
        parts.append(source[start : match.start()])
        start = match.end()
        if name is None:
            text, start = _symbol(match[2], source, start)
        else:
            text, start = _named(name, source, start, document)
        parts.append(text)
    return "".join([*parts, source[start:]])


def _symbol(char: str, source: str, position: int) -> tuple[str, int]:
    """A command of one character: an accent, an escaped character, or a space."""
    if char in _ACCENTS:
        letter, position = read_group(source, position)
        return unicodedata.normalize("NFC", letter.replace("\\i", "i") + _ACCENTS[char]), position
    if char == "\\":
        return " ", position
    if char in "{}":
        return {"{": "\ue002", "}": "\ue003"}[char], position
    return (" " if char in ", ;:!/\n-" and char not in "-/" else "" if char in "-/" else char), position


def _named(name: str, source: str, position: int, document: Document) -> tuple[str, int]:
    """A command with a name, its arguments included."""
    if name in PRINTED:
        num_arguments, printer = PRINTED[name]
        arguments = []
        position = _skip_options(source, position)
        for _ in range(num_arguments):
            argument, position = read_group(source, position)
            arguments.append(argument)
        return printer(*arguments), position
    if "cite" in name.lower():
        argument, position = read_group(source, _skip_options(source, position))
        document.drop("citations", argument)
        return "", position
    if name in DROPPED_COMMANDS:
        argument, position = read_group(source, _skip_options(source, position))
        kind = DROPPED_COMMANDS[name]
        if kind:
            document.drop(kind, argument)
        return "", position
    if name in ("begin", "end"):
        _, position = read_group(source, position)
        return "\n\n", _skip_options(source, position)
    if name == "item":
        return "\n\n", _skip_options(source, position)
    if name in ("par", "newpage", "clearpage", "maketitle", "appendix"):
        return "\n\n", position
    if name == "href":
        _, position = read_group(source, position)
        return "", position
    if name in ("textsuperscript", "textsubscript"):
        return "^" if name == "textsuperscript" else "", position
    if name in _LETTER_ACCENTS and source[position : position + 1] in ("{", " "):
        letter, position = read_group(source, position)
        return unicodedata.normalize("NFC", letter + _LETTER_ACCENTS[name]), position
    if name in _LETTERS and source[position : position + 1] == " ":
        position += 1
    symbol = _LETTERS.get(name) or SYMBOLS.get(name.removeprefix("text")) or SYMBOLS.get(name) or ""
    # A command swallows the space after it; its group, if any, is text and is read on.
    return symbol, position


def _skip_options(source: str, position: int) -> int:
    while source[position : position + 1] == "[":
        _, position = read_group(source, position, "[")
    return position


def _range(first: str, last: str, unit: str = "") -> str:
    return f"{number_to_text(first)}-{quantity_to_text(last, unit)}".strip()


PRINTED: dict[str, tuple[int, Callable[..., str]]] = {
    "SI": (2, quantity_to_text),
    "qty": (2, quantity_to_text),
    "si": (1, unit_to_text),
    "unit": (1, unit_to_text),
    "num": (1, number_to_text),
    "SIrange": (3, _range),
    "qtyrange": (3, _range),
    "numrange": (2, _range),
    "ang": (1, lambda angle: f"{number_to_text(angle)}°"),
    "ce": (1, chemistry_to_text),
    "chemfig": (1, str),
}
