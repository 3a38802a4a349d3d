"""PDF articles with a text layer: headings by the size and weight of their font, page headers and captions counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.reading.documents import pdf_lines
from quasitile.reading.documents.document import MAX_TEXT_CHARACTERS, Document, Section, check_size, with_text
from quasitile.reading.documents.text import KNOWN_HEADINGS, REFERENCES
from quasitile.reading.normalise import count_words, dehyphenate, normalise

MAX_MEMORY_BYTES = 2_000_000_000
MAX_SECONDS = 120
HEADING_SIZE = 1.08  # of the body's font size
MAX_HEADING_CHARACTERS = 120
MIN_REPEATS = 3  # pages on which a line stands at an edge to be a page header
_NUMBERED = re.compile(r"(?P<number>\d{1,2}(?:\.\d{1,2})*)\.?\s+(?=[A-Z])")
_CAPTION = re.compile(r"(?:Fig(?:ure|\.)?|Table|Scheme)\s?S?\d+[.:|]?\s", re.IGNORECASE)
_PAGE_NUMBER = re.compile(r"(?:page\s)?\d{1,4}(?:\s?(?:of|/)\s?\d{1,4})?$", re.IGNORECASE)

Line = dict[str, Any]


def read_pdf(path: Path) -> list[Document]:
    """Read one PDF. pypdf works in a process of its own that is ended when it takes too long or too much memory.

    Raises:
        InputError: pypdf is not installed, or the file is broken, encrypted, endless, or has no text layer.
    """
    check_size(path)
    if find_spec("pypdf") is None:
        raise InputError(f"{path} needs pypdf; install quasitile[pdf], or convert it to JATS XML, LaTeX, Markdown or text")
    title, lines = _extract(path)
    if not lines:
        raise InputError(f"{path} has no text layer; run optical character recognition on it first")
    document = Document(path.stem, str(path), "pdf", normalise(title))
    lines = _without_page_headers(lines, document)
    body_size = _body_size(lines)
    lines = _take_title(lines, body_size, document)
    found = _sections(lines, body_size)
    vocabulary = count_words(normalise("\n\n".join(text for _, _, blocks in found for text in blocks)))
    for heading, level, blocks in found:
        kept = []
        for block in blocks:
            if _CAPTION.match(block):
                document.drop("captions", block)
            else:
                kept.append(block)
        text = dehyphenate(normalise("\n\n".join(kept)), vocabulary)
        if REFERENCES.match(heading):
            document.drop("references", text)
        elif text or heading != "Main text":
            document.sections.append(Section(heading, level, "", text))
    document.title = document.title or path.stem
    return with_text(document)


def _extract(path: Path) -> tuple[str, list[Line]]:
    """The title in the file's metadata and its printed lines."""
    program = [sys.executable, "-I", pdf_lines.__file__, str(path), str(MAX_MEMORY_BYTES), str(MAX_TEXT_CHARACTERS)]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=MAX_SECONDS, encoding="utf-8", check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path} takes more than {MAX_SECONDS} s to read; convert it to text") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["cannot be read as PDF; repair or convert it"])[-1]
        raise InputError(f"{path} {reason}")
    first, *rows = done.stdout.splitlines() or ["{}"]
    lines = [json.loads(row) for row in rows]
    for line in lines:
        line["text"] = line["text"].replace("\ufffe", "-")
    return json.loads(first).get("title", ""), lines


def _without_page_headers(lines: list[Line], document: Document) -> list[Line]:
    """Drop page numbers and lines that recur, but for their numbers, at the top or foot of several pages."""
    by_page: dict[int, list[int]] = {}
    for index, line in enumerate(lines):
        by_page.setdefault(line["page"], []).append(index)
    edges = {index for page in by_page.values() for index in (*page[:3], *page[-3:])}
    pages: dict[str, set[int]] = {}
    for index in edges:
        pages.setdefault(re.sub(r"\d+", "#", lines[index]["text"]), set()).add(lines[index]["page"])
    kept = []
    for index, line in enumerate(lines):
        repeated = len(pages.get(re.sub(r"\d+", "#", line["text"]), ())) >= MIN_REPEATS
        if index in edges and (repeated or _PAGE_NUMBER.match(line["text"])):
            document.drop("page headers", line["text"])
        else:
            kept.append(line)
    return kept


def _body_size(lines: list[Line]) -> float:
    """The font size that most characters have."""
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[round(line["size"] * 2) / 2] += len(line["text"])
    return max(sizes, key=lambda size: sizes[size]) if sizes else 10.0


def _take_title(lines: list[Line], body_size: float, document: Document) -> list[Line]:
    """The largest lines that stand together on the first page are the title."""
    first = [line for line in lines if line["page"] == 1]
    largest = max((line["size"] for line in first), default=0.0)
    if largest <= HEADING_SIZE * body_size:
        return lines
    start = next(index for index, line in enumerate(lines) if line["size"] == largest)
    stop = start
    while stop < len(lines) and lines[stop]["page"] == 1 and lines[stop]["size"] == largest:
        stop += 1
    printed = normalise(" ".join(line["text"] for line in lines[start:stop]))
    if len(printed) > 300 or KNOWN_HEADINGS.match(printed) or _NUMBERED.match(printed):
        return lines
    document.title = printed if len(printed) > len(document.title) / 2 else document.title
    return [*lines[:start], *lines[stop:]]


def _heading(line: Line, body_size: float) -> int:
    """The level of a heading, or zero."""
    text = line["text"]
    if len(text) > MAX_HEADING_CHARACTERS or not re.search(r"[A-Za-z]{3}", text) or text.endswith((",", ";")):
        return 0
    numbered = _NUMBERED.match(text)
    large = line["size"] > HEADING_SIZE * body_size
    known = KNOWN_HEADINGS.match(text[numbered.end() :] if numbered else text)
    if not (large or (line["bold"] and (numbered or known)) or (known and text.isupper())):
        return 0
    if _CAPTION.match(text) or (text.endswith(".") and not numbered):
        return 0
    return numbered["number"].count(".") + 1 if numbered else 1


def _sections(lines: list[Line], body_size: float) -> list[tuple[str, int, list[str]]]:
    """Headings with the paragraphs below them."""
    found: list[tuple[str, int, list[str]]] = [("Main text", 1, [])]
    leading = _leading(lines)
    before: Line | None = None
    for line in lines:
        level = _heading(line, body_size)
        again = level and before is not None and not found[-1][2] and before["size"] == line["size"] and len(found) > 1
        if again and before is not None and before["page"] == line["page"] and before["y"] - line["y"] < 2 * line["size"]:
            title, level, _ = found[-1]
            found[-1] = (normalise(f"{title} {line['text']}"), level, [])
        elif level:
            found.append((normalise(_NUMBERED.sub("", line["text"])), level, []))
        elif before is not None and found[-1][2] and not _new_paragraph(before, line, leading):
            found[-1][2][-1] += f" {line['text']}"
        else:
            found[-1][2].append(line["text"])
        before = line
    return found


def _leading(lines: list[Line]) -> float:
    """The usual distance of two lines."""
    gaps = Counter(round(a["y"] - b["y"], 0) for a, b in pairwise(lines) if a["page"] == b["page"] and 0 < a["y"] - b["y"] < 40)
    return max(gaps, key=lambda gap: (gaps[gap], -gap)) if gaps else 12.0


def _new_paragraph(before: Line, line: Line, leading: float) -> bool:
    """Whether a paragraph begins: after a gap, with an indent, or after a jump that follows a full stop."""
    gap = before["y"] - line["y"]
    ended = before["text"].endswith((".", "!", "?", ":"))
    if _CAPTION.match(line["text"]):
        return True
    if before["page"] != line["page"] or gap < 0 or gap > 4 * leading:
        return ended
    return gap > 1.35 * leading or (ended and 4 < line["x"] - before["x"] < 40)
