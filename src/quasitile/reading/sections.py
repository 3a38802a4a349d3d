"""Sections of a size to teach: typed, tiny ones merged, very long ones split; no text is lost."""

from __future__ import annotations

import re
from dataclasses import replace

from quasitile.reading.documents.document import Section
from quasitile.reading.sentences import split_sentences

TYPES = ("abstract", "introduction", "methods", "results", "discussion", "conclusion", "other")
# What a title says, in order of trust: "Results and discussion" are results.
_TITLES = {
    "abstract": r"a\s?b\s?s\s?t\s?r\s?a\s?c\s?t\b|graphical abstract",
    "conclusion": r"conclu(?:sions?|ding)|summary\b|outlook|perspectives?$|final remarks",
    "introduction": r"introduction|background|motivation|state of the art",
    "results": r"results?\b|findings",
    "discussion": r"discussion",
    "methods": r"(?:materials? and )?methods?\b|experiment(?:al|s)?\b|methodology|procedures?\b|synthesis|preparation|"
    r"fabrication|characteri[sz]ation|measurements?\b|simulation details|computational|materials\b",
}
_TITLE_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _TITLES.items()}
_NUMBERING = re.compile(r"^(?:(?:\d+(?:\.\d+)*(?:\.?\s+|\.(?=[A-Z]))|(?:[IVX]+\.|[A-Z]\.|§)\s+))+(?=\S)")


def shape_sections(sections: list[Section], min_characters: int, max_characters: int) -> list[Section]:
    """Give types, then merge and split, so that a section and a question fit a small model's context.

    Args:
        sections: A document's sections as read; those without text lend their type to what is below.
        min_characters: Shorter sections join a neighbour of the same type.
        max_characters: Longer ones are split at paragraphs, then at sentences, then at blanks.
    """
    typed = _with_types([replace(section, title=clean_title(section.title)) for section in sections])
    merged = _merge([section for section in typed if section.text], min_characters, max_characters)
    return [part for section in merged for part in _split(section, max_characters)]


def clean_title(title: str) -> str:
    """A title without its numbers: `2. Experimental / 2.1. Sample preparation` to `Experimental / Sample preparation`."""
    title = re.sub(r"\b(?:[A-Z] ){3,}[A-Z]\b", lambda match: match[0].replace(" ", "").capitalize(), title)
    parts = [_NUMBERING.sub("", part.strip()).strip(" :") for part in title.split(" / ")]
    return " / ".join(part for part in parts if part) or "Main text"


def title_type(title: str) -> str:
    """The type a title names, or nothing. The last part of a path counts first."""
    for part in reversed(title.split(" / ")):
        for name, pattern in _TITLE_PATTERNS.items():
            if pattern.match(part):
                return name
    return ""


def declared_type(value: str) -> str:
    """The type that a JATS `sec-type` such as `intro` or `materials|methods` declares, or nothing."""
    for part in re.split(r"[|,\s]+", value.lower()):
        for name in TYPES[:-1]:
            if part and (part.startswith(name) or name.startswith(part) or (part == "conclusions" and name == "conclusion")):
                return name
    return ""


def _with_types(sections: list[Section]) -> list[Section]:
    """Type by declaration, title, the section above, and position, in this order."""
    typed: list[Section] = []
    above: list[tuple[int, str]] = []
    titles: list[tuple[int, str]] = []
    for index, section in enumerate(sections):
        above = [(level, name) for level, name in above if level < section.level]
        titles = [(level, title) for level, title in titles if level < section.level]
        inherited = above[-1][1] if above else ""
        named = declared_type(section.type) or title_type(section.title) or inherited
        opening = all(earlier.type == "abstract" for earlier in typed) and section.title == "Main text" and len(sections) > 1
        name = named or ("introduction" if opening and index < len(sections) - 1 else "other")
        above.append((section.level, named))
        typed.append(replace(section, type=name, path=tuple(title for _, title in titles)))
        titles.append((section.level, section.title))
    return typed


def _merge(sections: list[Section], min_characters: int, max_characters: int) -> list[Section]:
    """Join a section with the next one of the same type while either is tiny."""
    merged: list[Section] = []
    for section in sections:
        before = merged[-1] if merged else None
        if (
            before is not None
            and before.type == section.type
            and section.type != "abstract"
            and min(len(before.text), len(section.text)) < min_characters
            and len(before.text) + len(section.text) + 2 <= max_characters
        ):
            parts = before.title.split(" / ")
            title = before.title if section.title in parts else f"{before.title} / {section.title}"
            merged[-1] = replace(before, title=title, text=f"{before.text}\n\n{section.text}")
        else:
            merged.append(section)
    return merged


def _split(section: Section, max_characters: int) -> list[Section]:
    """Parts of about equal length, none over the limit."""
    if len(section.text) <= max_characters:
        return [section]
    num_parts = -(-len(section.text) // max_characters)
    target = min(max_characters, len(section.text) // num_parts + max_characters // 10)
    parts: list[str] = []
    for separator, piece in _pieces(section.text, max_characters):
        if parts and len(parts[-1]) + len(separator) + len(piece) <= target:
            parts[-1] += separator + piece
        else:
            parts.append(piece)
    titles = [section.title, *(f"{section.title} (part {number})" for number in range(2, len(parts) + 1))]
    return [replace(section, title=title, text=text) for title, text in zip(titles, parts, strict=True)]


def _pieces(text: str, limit: int) -> list[tuple[str, str]]:
    """Paragraphs, or where one is too long its sentences, or words, each with the separator before it."""
    pieces: list[tuple[str, str]] = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) <= limit:
            pieces.append(("\n\n", paragraph))
            continue
        separator = "\n\n"
        for sentence in split_sentences(paragraph):
            for piece in _chop(sentence.text, limit):
                pieces.append((separator, piece))
                separator = " "
    return pieces


def _chop(sentence: str, limit: int) -> list[str]:
    """Cut a sentence longer than the limit at blanks, or inside a word that is longer still."""
    parts = []
    while len(sentence) > limit:
        stop = sentence.rfind(" ", 1, limit)
        stop = limit if stop < 0 else stop
        parts.append(sentence[:stop].rstrip())
        sentence = sentence[stop:].lstrip()
    return [*parts, sentence]
