"""Noun phrases that can stand in a question on their own."""

from __future__ import annotations

import re
from functools import lru_cache

from quasitile.reading.formulae import find_formulae
from quasitile.reading.sentences import Sentence, num_letters

POINTERS = frozenset([
    "it", "its", "they", "their", "them", "this", "these", "that", "those", "there", "here", "he", "she", "we", "our", "us",
    "i", "you", "such", "other", "others", "another", "one", "which", "who", "what", "when", "where", "while", "if", "as",
    "however", "thus", "therefore", "hence", "moreover", "furthermore", "besides", "also", "but", "and", "or", "so", "yet",
    "then", "finally", "first", "firstly", "second", "secondly", "third", "similarly", "likewise", "otherwise", "instead",
    "nevertheless", "additionally", "consequently", "accordingly", "meanwhile", "indeed", "interestingly", "notably",
    "again", "afterwards", "subsequently", "former", "latter", "same", "no", "not", "none", "neither", "rather",
])  # fmt: skip
_POINTING = frozenset(["it", "its", "they", "their", "this", "these", "that", "those", "such", "which", "both"])
_LEADS = re.compile(
    r"^(?:(?:However|Moreover|Furthermore|Thus|Therefore|Hence|Finally|Then|Also|In addition|In general|Generally|"
    r"Typically|First|Firstly|Second|Secondly|Next|Subsequently|Afterwards|Additionally|Consequently|As a result|In contrast|"
    r"Similarly|Interestingly|Recently|Usually|Overall|For example|For instance|On the other hand|Meanwhile|Nevertheless|"
    r"Besides|In particular|Indeed|Notably|In fact|Accordingly|In this case),\s*)+"
)
_BAD_INSIDE = re.compile(
    r"\b(?:which|that|this|these|those|it|its|they|their|we|our|is|are|was|were|be|been|has|have|had|can|could|may|might|will|would|"
    r"should|shows?|showed|if|because|although|while|when|where|whereas|since|figs?|figures?|tables?|eqs?|equations?|refs?|respectively|"
    r"above|below|aforementioned|following|former|latter|same|such|due|but|then|thus|also|not|therefore|often|usually|only|generally|"
    r"typically|normally|mainly|still|already|mostly|hence|however|so|even|there|here|herein)\b|[;:=<>\"\[\]@|]",
    re.IGNORECASE,
)
_DETERMINERS = frozenset(["the", "a", "an", "all", "both", "each"])
_REFERS = re.compile(
    r"\b(?:Figs?\.?|Figures?|Tables?|Eqs?\.|Equations?|Refs?\.|Sections?|Schemes?|Chapters?)(?!\w)|https?:|\bet al\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=256)
def strip_lead(text: str) -> str:
    """A sentence without the words that tie it to the one before (`However, `)."""
    return _LEADS.sub("", text)


def noun_phrase(text: str, max_words: int = 8) -> str:
    """The phrase if it can stand alone in a question, otherwise nothing.

    Refused are pronouns and pointers, clauses, unbalanced brackets, and phrases that begin with a
    preposition or a number.
    """
    text = " ".join(text.split()).strip(" ,")
    words = text.split()
    if not words or len(words) > max_words or not re.search(r"[A-Za-z]{2}", text):
        return ""
    first = words[0].lower().strip("(")
    if first in POINTERS | _VAGUE | _PREPOSITIONS or not (words[0][0].isalpha() or words[0][0] == "("):
        return ""
    content = [word for word in words if word.lower() not in _DETERMINERS]
    if not content or (len(content) == 1 and content[0].lower() in _EMPTY_NOUNS):
        return ""
    if words[-1].lower() in _PREPOSITIONS | _DETERMINERS | {"and", "or"} or "," in text:
        return ""
    return "" if _BAD_INSIDE.search(text) or text.count("(") != text.count(")") else text


_PREPOSITIONS = frozenset([
    "in", "at", "on", "by", "for", "with", "from", "to", "of", "after", "before", "during", "under", "over", "between",
    "among", "using", "through", "upon", "within", "without", "via", "into", "onto", "despite", "due", "according", "about",
    "above", "below", "near", "than", "per", "toward", "towards", "until", "because", "although", "increasing",
    "decreasing",
])  # fmt: skip
_VAGUE = frozenset(["both", "each", "some", "many", "most", "several"])
_EMPTY_NOUNS = frozenset([
    "result", "results", "reason", "value", "values", "change", "changes", "effect", "difference", "differences",
    "increase", "decrease", "data", "fact", "work", "study", "paper", "authors", "experiments", "experiment",
    "measurements", "measurement", "behavior", "behaviour", "observation", "process", "method", "one", "part", "case",
])  # fmt: skip


def inside_sentence(phrase: str, text: str) -> str:
    """The phrase as it is written inside a sentence: its first letter small unless it is a name, formula or acronym."""
    first = phrase.split()[0]
    if first.lower() in _DETERMINERS:
        return phrase[0].lower() + phrase[1:]
    common = first[0].isupper() and first[1:].islower() and len(first) > 2
    if (
        common
        and not find_formulae(first)
        and re.search(rf"(?<![.!?]\s)(?<!\n)\b{re.escape(first[0].lower() + first[1:])}\b", text)
    ):
        return phrase[0].lower() + phrase[1:]
    return phrase


def names_formula(phrase: str) -> bool:
    """Whether the phrase names its subject by a chemical formula, and so stands without its article."""
    return bool(find_formulae(phrase))


def without_article(phrase: str) -> str:
    """The phrase without a leading article."""
    return re.sub(r"^(?:the|a|an)\s+", "", phrase, flags=re.IGNORECASE)


def is_plural(phrase: str) -> bool:
    """A guess at the number of the phrase's head noun."""
    head = re.split(r"\s(?:of|in|for|with|on|at|from)\s", phrase)[0].split()[-1]
    return head.endswith("s") and not head.endswith(("ss", "us", "is", "ics")) and not find_formulae(head)


# A heading that ran into its sentence: `Crystallographic Characterization The powder was ...`.
_HEADED = re.compile(r"(?:[A-Z][a-z]{4,}(?: and)? ){1,4}(?:The|A|An|In|To|All|We|This|It|For|As)\s|(?:[A-Z][a-z]{5,} ){2,}")


def understandable(sentence: Sentence, max_words: int = 40, min_words: int = 8) -> bool:
    """Whether a sentence makes sense without its neighbours: no pointers, no figures, nothing cut off."""
    return min_words <= sentence.num_words <= max_words and _stands_alone(sentence.text)


@lru_cache(maxsize=256)
def _stands_alone(text: str) -> bool:
    if not text.endswith(".") or not text[0].isupper():
        return False
    first = re.match(r"[\w'-]+", text)
    if first is None or first[0].lower() in POINTERS or _REFERS.search(text):
        return False
    if "\\" in text or _HEADED.match(text):
        return False
    if text.count("(") != text.count(")") or text.count("[") != text.count("]") or text.count('"') % 2:
        return False
    return num_letters(text) >= 0.75 * len(text)


def quotable(sentence: Sentence, max_words: int = 60) -> bool:
    """Whether a whole sentence can be quoted in a question, though it names a figure or is long."""
    text = sentence.text
    if text.partition(" ")[0].lower().rstrip(",") in _POINTING:
        return False
    return (
        6 <= sentence.num_words <= max_words
        and text.endswith(".")
        and (text[0].isupper() or text[0] == "(")
        and not any(mark in text for mark in "\\|")
        and text.count("(") == text.count(")")
        and text.count("[") == text.count("]")
        and num_letters(text) >= 0.6 * len(text)
    )


_CLAUSE_END = re.compile(
    r"[;:]|\.(?=\s|$)|,? (?:while|whereas|although|but|because|since|so that|resulting|leading|indicating|suggesting|as shown|"
    r"respectively|thereby|thus)\b|, (?:which|and (?:the|this|it|its|is|was|are|were|can)|the|this|it|as|is|was|are|"
    r"were|with|where|when|making|in|not|however|far|much)\b|\s?\[|\s\((?:Figs?|Figures?|Tables?|see|Eqs?)\b"
)


def clip(text: str, max_words: int) -> str:
    """A clause up to where the next begins, or nothing when it is longer than `max_words` or cut off."""
    clause = re.sub(r"(?:[\s,]+(?:and|or|as well))+$", "", _CLAUSE_END.split(text, maxsplit=1)[0].strip(" ,"))
    words = clause.split()
    if not words or len(words) > max_words or clause.count("(") != clause.count(")") or clause.count('"') % 2:
        return ""
    return "" if words[-1].lower() in _PREPOSITIONS | _DETERMINERS else clause
