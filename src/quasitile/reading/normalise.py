"""The one form of text that offsets count in (docs/data.md), and the mending of line breaks from PDF."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓ", "0123456789+-=()aeox", strict=True))
LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
CHARACTERS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u00b5": "\u03bc", "\u2126": "\u03a9", "\u212b": "\u00c5", "\u212a": "K",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2103": "\u00b0C", "\u2109": "\u00b0F", "\u25e6": "\u00b0",
    "\u00ad": "", "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "",
}  # fmt: skip
_TABLE = str.maketrans({**CHARACTERS, **LIGATURES, **SUBSCRIPTS})
_SUPERSCRIPT = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ue000-\uf8ff]")
_PARAGRAPH = re.compile(r"\n\s*\n")
_DIGIT_DASH = re.compile(r"(?<=\d)(\s?)[\u2013\u2014](\s?)(?=\d)")
_MINUS = re.compile(r"(?<![\w)\]])\u2013(?=\d)")
_CARET = re.compile(r"\^\s*(?:\{([^{}]*)\})?")
_BROKEN = re.compile(r"\b([A-Za-z][A-Za-z0-9]*)- ([a-z]+)")
_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")

SUSPENDED = frozenset(["and", "or", "to", "nor", "but", "as", "versus", "vs", "than", "through"])
COMPOUND_ENDINGS = frozenset([
    "based", "like", "free", "type", "rich", "doped", "coated", "induced", "dependent", "independent", "assisted", "driven",
    "containing", "situ", "shaped", "sized", "treated", "processed", "phase", "state", "scale", "layer", "dimensional",
    "resolution", "performance", "temperature", "term", "step", "ray",
])  # fmt: skip


def normalise(text: str) -> str:
    """Normalise running text.

    Paragraphs are separated by one blank line and hold single spaces only; superscripts become
    `^` and subscripts stand inline. Applying it twice changes nothing.
    """
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda match: "^" + "".join(SUPERSCRIPTS[char] for char in match[0]), text).translate(_TABLE)
    text = _CONTROL.sub("", text)
    if "^" in text:
        text = _CARET.sub(lambda match: f"^{(match[1] or '').strip()}", text)
        text = re.sub(r"\^(?:[\^\s]|(?=\Z))+", "^", text).rstrip("^")
    if not text.isascii():
        text = _MINUS.sub("-", _DIGIT_DASH.sub("-", text))
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def dehyphenate(text: str, vocabulary: Counter[str]) -> str:
    """Join words that a PDF broke at a line end: `ef- ficiency`, but `Co- based` to `Co-based`.

    Args:
        text: Normalised text, in which a break reads "hyphen, space".
        vocabulary: How often the document uses each word, from `count_words`.
    """

    def join(match: re.Match[str]) -> str:
        left, right = match[1], match[2]
        if right in SUSPENDED:
            return match[0]
        joined, compound = (left + right).lower(), f"{left}-{right}".lower()
        if vocabulary[joined] or vocabulary[compound]:
            return left + right if vocabulary[joined] >= vocabulary[compound] else f"{left}-{right}"
        plain = left.isalpha() and left[1:].islower() and len(left) > 1
        both_words = vocabulary[left.lower()] and vocabulary[right]
        if not plain or right in COMPOUND_ENDINGS or both_words:
            return f"{left}-{right}"
        return left + right

    return _BROKEN.sub(join, text)


def count_words(text: str) -> Counter[str]:
    """Count words and hyphenated compounds in lower case, leaving out words broken at a line end."""
    whole = _BROKEN.sub(" ", text)
    counts = Counter(word.lower() for word in _WORD.findall(whole))
    for word in list(counts):
        if "-" in word:
            for part in word.split("-"):
                counts[part] += counts[word]
    return counts


@lru_cache(maxsize=4096)
def comparable(text: str) -> str:
    """Reduce text to what counts when answers are compared: case, articles, punctuation and spacing do not."""
    text = normalise(text).lower().replace("-", " ")
    text = re.sub(r"[^\w%°^.+/ ]|\.(?!\d)", " ", text)
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))
