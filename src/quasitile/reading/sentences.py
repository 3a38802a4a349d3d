"""Sentences of normalised text, with their exact offsets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

ABBREVIATIONS = frozenset([
    "fig", "figs", "eq", "eqs", "ref", "refs", "tab", "sec", "no", "nos", "al", "etc", "ca", "cf", "vs", "approx", "resp",
    "wt", "at", "vol", "e.g", "i.e", "dr", "prof", "mr", "mrs", "ms", "st", "vs", "inc", "ltd", "co", "corp", "dept",
    "temp", "max", "min", "ed", "eds", "pp", "vol", "viz", "fig.s", "ch", "chap", "ex", "jr", "sr", "u.s", "u.k", "a.m",
    "p.m", "et",
])  # fmt: skip
_STOP = re.compile(r"[.!?][\"')\]]*(?=\s|$)|\n\n")


@dataclass(frozen=True)
class Sentence:
    """A sentence and where it stands: `section.text[start:stop] == text`."""

    text: str
    start: int
    stop: int

    @cached_property
    def num_words(self) -> int:
        """Words, split at white space."""
        return len(self.text.split())


def num_letters(text: str) -> int:
    """Letters and blanks."""
    return sum(map(str.isalpha, text)) + text.count(" ")


def split_sentences(text: str) -> list[Sentence]:
    """Split at full stops that end a sentence and at paragraph ends; every character but white space is in one sentence."""
    sentences, start = [], 0
    for stop in [*(match.end() for match in _STOP.finditer(text) if _ends(text, match)), len(text)]:
        piece = text[start:stop]
        left = start + len(piece) - len(piece.lstrip())
        right = start + len(piece.rstrip())
        if right > left:
            sentences.append(Sentence(text[left:right], left, right))
        start = stop
    return sentences


def _ends(text: str, match: re.Match[str]) -> bool:
    """Whether this mark ends a sentence, rather than an abbreviation or an initial."""
    if match[0] == "\n\n" or match[0][0] in "!?":
        return True
    following = text[match.end() : match.end() + 3].lstrip()
    if following and not (following[0].isupper() or following[0].isdigit() or following[0] in "([\"'"):
        return False
    word = re.search(r"[\w.]*$", text[max(0, match.start() - 20) : match.start()])
    last = word[0].lower() if word else ""
    if last in ABBREVIATIONS:
        # "at." and "wt." end sentences too rarely to matter; "et al." before a capital often does not.
        return False
    return not (len(last) == 1 and last.isalpha() and text[match.start() - 1].isupper() and _initial(text, match.start()))


def _initial(text: str, dot: int) -> bool:
    """Whether a capital before `dot` is an initial of a name (`J. Smith`, `U. S.`), not a unit (`300 K.`)."""
    before = text[: dot - 1].rstrip()[-1:]
    return not before.isdigit() and before != "°"
