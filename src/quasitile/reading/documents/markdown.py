"""Markdown and the parts of MyST that papers and lectures use: directives, dollar mathematics, front matter."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from quasitile.reading.documents.document import Document, Section, read_text, with_text
from quasitile.reading.documents.mathematics import math_to_text
from quasitile.reading.documents.text import REFERENCES
from quasitile.reading.normalise import normalise

# MyST directives whose content is prose; the text of any other is code, media or layout.
PROSE_DIRECTIVES = frozenset([
    "note", "warning", "tip", "important", "hint", "admonition", "seealso", "attention", "caution", "danger", "error",
    "topic", "sidebar", "margin", "epigraph", "proof", "theorem", "definition", "exercise", "solution",
])  # fmt: skip
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)
_CODE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[`~]*[ \t]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?![\s$])((?:\\.|[^$\\\n]|\n(?!\n))+?)(?<!\s)\$(?![\d$])", re.DOTALL)
_COLON_FENCE = re.compile(r"^:{3,}\{([\w-]+)\}([^\n]*)\n(.*?)^:{3,}[ \t]*$", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"\{([\w:-]+)\}\s*(.*)")
_OPTION = re.compile(r"\A(?:\s*:[\w-]+:[^\n]*\n)+")
_ROLE = re.compile(r"\{[\w:-]+\}$")
_CITATION = re.compile(r"\[(?:-?@[\w:.#$%&+?<>~/-]+[^\]]*|\^[^\]]+)\]")
_PLACE = "\ue000{}\ue001"
_PLACED = re.compile("\ue000(\\d+)\ue001")


def read_markdown(path: Path) -> list[Document]:
    """Read CommonMark with tables; the title is the front matter's, or the first heading of level 1.

    Raises:
        InputError: The file is empty, not UTF-8, or holds no text.
    """
    source = re.sub("[\ue000\ue001]", "", read_text(path))
    document = Document(path.stem, str(path), "markdown", "")
    source = _front_matter(source, document)
    reader = _Reader(document)
    reader.read(source)
    reader.close_section()
    document.title = document.title or path.stem
    return with_text(document)


def _front_matter(source: str, document: Document) -> str:
    """Take title and licence from YAML front matter, and return the rest."""
    match = _FRONT_MATTER.match(source)
    if not match:
        return source
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return source  # not front matter after all: a rule and text
    if isinstance(header, dict):
        document.title = normalise(str(header.get("title") or ""))
        document.licence = str(header.get("licence") or header.get("license") or "")
        document.drop("front matter", match[1])
        return source[match.end() :]
    return source


class _Reader:
    """Collects the tokens of one document into its sections."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.title, self.level = "Main text", 1
        self.paragraphs: list[str] = []
        self.formulae: list[str] = []
        self.parser = MarkdownIt("commonmark").enable("table")

    def close_section(self) -> None:
        """Append what was read since the last heading."""
        text = normalise("\n\n".join(self.paragraphs))
        self.paragraphs = []
        if REFERENCES.match(self.title):
            self.document.drop("references", text)
        elif text or self.title != "Main text":
            self.document.sections.append(Section(self.title, self.level, "", text))

    def read(self, source: str) -> None:
        """Read blocks of Markdown into the current section."""
        source = _COLON_FENCE.sub(lambda match: f"````{{{match[1]}}}{match[2]}\n{match[3]}````", source)
        source = re.sub(r"^\+\+\+.*$|^\(([\w:-]+)\)=\s*$", "", source, flags=re.MULTILINE)
        tokens = self.parser.parse(self._hide_mathematics(source))
        position = 0
        while position < len(tokens):
            position = self._block(tokens, position)

    def _hide_mathematics(self, source: str) -> str:
        """Put formulae out of the parser's reach, which would take `_` and `*` in them for emphasis."""
        parts, start = [], 0
        for code in _CODE.finditer(source):
            parts += [_MATH.sub(self._hide, source[start : code.start()]), code[0]]
            start = code.end()
        return "".join([*parts, _MATH.sub(self._hide, source[start:])])

    def _hide(self, match: re.Match[str]) -> str:
        display = match[1] is not None
        self.formulae.append(math_to_text(match[1] if display else match[2]))
        return _PLACE.format(len(self.formulae) - 1)

    def _show(self, text: str) -> str:
        return _PLACED.sub(lambda match: self.formulae[int(match[1])], text)

    def _block(self, tokens: list[Token], position: int) -> int:
        """Read the block at `position`; return the next position."""
        token = tokens[position]
        if token.type == "heading_open":
            self._heading(int(token.tag[1:]), self._inline(tokens[position + 1]))
            return position + 3
        if token.type == "table_open":
            stop = next(index for index in range(position, len(tokens)) if tokens[index].type == "table_close")
            cells = [self._show(inner.content) for inner in tokens[position:stop] if inner.type == "inline"]
            self.document.drop("tables", " ".join(cells))
            return stop + 1
        if token.type == "inline":
            self.paragraphs.append(self._inline(token))
        elif token.type == "fence":
            self._fence(token)
        elif token.type == "code_block":
            self.document.drop("code", self._show(token.content))
        elif token.type == "html_block":
            self.document.drop("markup", self._show(token.content))
        return position + 1

    def _heading(self, level: int, title: str) -> None:
        title = normalise(title)
        if level == 1 and not self.document.sections and not self.paragraphs and self.title == "Main text":
            if not self.document.title:
                self.document.title = title
            if title == self.document.title:
                return
        self.close_section()
        self.title, self.level = title or "Main text", max(level - 1, 1)

    def _fence(self, token: Token) -> None:
        """Code, or a MyST directive: mathematics and prose stay."""
        directive = _DIRECTIVE.match(token.info.strip())
        name = directive[1] if directive else ""
        content = _OPTION.sub("", token.content)
        if name == "math":
            self.paragraphs.append(math_to_text(self._show(content)))
        elif name in PROSE_DIRECTIVES:
            if directive and directive[2]:
                self.paragraphs.append(self._show(directive[2]))
            self.read(content)
        else:
            self.document.drop(
                "code" if name in ("", "code-cell", "code", "code-block") else "media", self._show(token.content)
            )

    def _inline(self, token: Token) -> str:
        parts: list[str] = []
        for child in token.children or []:
            if child.type in ("softbreak", "hardbreak"):
                parts.append(" ")
            elif child.type == "image":
                self.document.drop("figures", self._show(child.content))
            elif child.type == "html_inline":
                parts.append("^" if child.content == "<sup>" else "")
            elif child.type == "code_inline":
                self._code(child, parts)
            elif child.type == "text":
                parts.append(child.content)
        return self._citations(self._show("".join(parts)))

    def _code(self, child: Token, parts: list[str]) -> None:
        """Inline code; after a role's name it is mathematics or a reference."""
        role = _ROLE.search(parts[-1]) if parts else None
        if role is None:
            parts.append(child.content)
            return
        parts[-1] = parts[-1][: role.start()]
        if role[0] == "{math}":
            parts.append(math_to_text(child.content))
        elif role[0].startswith("{cite"):
            self.document.drop("citations", child.content)
        else:
            parts.append(re.sub(r"\s*<[^>]*>$", "", child.content))

    def _citations(self, text: str) -> str:
        for match in _CITATION.finditer(text):
            self.document.drop("citations", match[0])
        return re.sub(r"\s+(?=[,.;](?:\s|$))", "", _CITATION.sub("", text))
