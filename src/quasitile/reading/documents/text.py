"""Plain text whose headings stand on lines of their own."""

from __future__ import annotations

import re
from pathlib import Path

from quasitile.reading.documents.document import Document, Section, read_text, with_text
from quasitile.reading.normalise import count_words, dehyphenate, normalise

_NUMBERED = re.compile(r"(?P<number>\d{1,2}(?:\.\d{1,2})*)\.?\s+(?P<title>[A-Z][^.!?]{1,78})$")
_UNDERLINE = re.compile(r"(=|-|~|\^)\1{2,}$")
KNOWN_HEADINGS = re.compile(
    r"(?:abstract|summary|introduction|background|theory|experimental(?: \w+)?|methods?|materials and methods|"
    r"results(?: and discussion)?|"
    r"discussion|conclusions?|outlook|acknowledge?ments?|references|bibliography|appendix(?: [a-z])?)\s*:?$",
    re.IGNORECASE,
)
REFERENCES = re.compile(r"(?:\d+\.?\s+)?(?:references|bibliography|literature cited|works cited)\s*:?$", re.IGNORECASE)

BACK_MATTER = re.compile(
    r"(?:conflicts? of interests?|competing interests?|supplementary|supporting information|acknowledge?ments?|funding|"
    r"author(?:s'?)? contributions?|data availability|declarations?|additional information)",
    re.IGNORECASE,
)


def read_plain(path: Path) -> list[Document]:
    """Read plain text: the first short line is the title, headings are numbered, underlined, capitals or well-known.

    Raises:
        InputError: The file is empty or not UTF-8.
    """
    lines = read_text(path).strip().split("\n")
    document = Document(path.stem, str(path), "text", path.stem)
    first = lines[0].strip()
    if len(first) <= 150 and (len(lines) == 1 or not lines[1].strip() or _UNDERLINE.match(lines[1].strip())):
        document.title = normalise(first)
        lines = lines[2:] if len(lines) > 1 else []
    title, level, held = "Main text", 1, []
    found: list[tuple[str, int, str]] = []
    position = 0
    while position < len(lines):
        heading = _heading(lines, position)
        if heading:
            found.append((title, level, "\n".join(held)))
            title, level, used = heading
            held, position = [], position + used
        else:
            held.append(lines[position])
            position += 1
    found.append((title, level, "\n".join(held)))
    vocabulary = count_words(normalise("\n\n".join(text for _, _, text in found)))
    for title, level, text in found:
        text = dehyphenate(normalise(text), vocabulary)
        if REFERENCES.match(title):
            document.drop("references", text)
        elif text or title != "Main text":
            document.sections.append(Section(title, level, "", text))
    return with_text(document)


def _heading(lines: list[str], position: int) -> tuple[str, int, int] | None:
    """The heading at this line as title, level and number of lines used; a blank line or the start must precede."""
    line = lines[position].strip()
    if not line or (position and lines[position - 1].strip()):
        return None
    following = lines[position + 1].strip() if position + 1 < len(lines) else ""
    underline = _UNDERLINE.match(following)
    if underline and len(line) <= 100:
        return normalise(line), 1 if underline[1] == "=" else 2, 2
    numbered = _NUMBERED.match(line)
    if numbered and not following:
        return normalise(numbered["title"]), numbered["number"].count(".") + 1, 1
    capitals = line.isupper() and 3 < len(line) <= 80 and len(line.split()) <= 10 and not following and not line.endswith(".")
    if capitals or KNOWN_HEADINGS.match(line):
        return normalise(line.rstrip(":")).capitalize(), 1, 1
    return None
