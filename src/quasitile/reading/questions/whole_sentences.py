"""Rules that ask about a whole sentence: a blank to fill, true or false, the section's main statement."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from quasitile.reading.formulae import find_formulae
from quasitile.reading.quantities import Quantity
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.phrases import understandable
from quasitile.reading.questions.properties import quantity_answers
from quasitile.reading.sentences import Sentence

BLANK = "____"
MAX_CLOZES = 8  # a section, before selection
FRAGMENT = 0.25  # what a blank in a piece of a sentence is worth less
MAX_BLANKS = 2  # a sentence
MAX_FRAGMENT_WORDS = 40  # of a run of text without a full stop, which fallback rules take in part
MAX_FRAGMENT_CHARACTERS = 300
_TERM = re.compile(r"(?<![\w^/-])[A-Za-z][A-Za-z-]{5,}[a-z](?![\w^/-])")
_ACRONYM = re.compile(r"(?<![\w^/-])[A-Z]{2,6}s?(?![\w^/-])")
_SUMS_UP = re.compile(
    r"\b(?:[Ii]n summary|[Ii]n conclusion|[Tt]o sum up|[Oo]verall|(?:results?|findings|data|analysis) (?:show|indicate|suggest|"
    r"confirm|demonstrate|reveal)\w*|[Ww]e (?:find|found|show|showed|conclude|demonstrate)\w*)\b"
)
_SAYS_DONE = re.compile(
    rf"{_SUMS_UP.pattern}|\b(?:[Ii]n (?:the|this) (?:present )?(?:work|paper|study|article|review)|[Hh]ere,|"
    r"(?:is|are|was|were|has been|have been) (?:\w+ly )?(?:presented|proposed|developed|reported|achieved|demonstrated|"
    r"investigated|studied|shown|found|discussed|reviewed|introduced))\b"
)
_INSTRUMENT = re.compile(r"[A-Z]{2,}\S*\s*$|\bV\s?$")
_NUMBERED = re.compile(r"\b(?:Figs?\.?|Figures?|Tables?|Schemes?|Eqs?\.|Equations?|Sections?|Movies?|Refs?\.)\s?$")
_ADDRESS = re.compile(r"\b(?:USA|Germany|Japan|China|France|UK|Korea|Switzerland|Italy|Inc\.|Ltd|GmbH|Corporation)\b")
# Words too common in scientific prose to be worth a blank.
COMMON = frozenset([
    "however", "therefore", "because", "although", "between", "through", "without", "within", "during", "before", "further",
    "another", "several", "various", "different", "respectively", "following", "according", "observed", "obtained",
    "measured", "performed", "prepared", "showed", "results", "result", "increase", "increased", "decrease", "decreased",
    "significant", "significantly", "important", "possible", "similar", "example", "present", "previous", "process",
    "method", "methods", "sample", "samples", "material", "materials", "property", "properties", "temperature", "structure",
    "system", "number", "content", "effect", "effects", "should", "would", "could", "which", "their", "these", "those",
    "there", "about", "above", "below", "where", "while", "whereas", "usually", "mainly", "order", "value", "values",
    "compared", "figure", "section", "reported", "studies", "research", "authors", "addition", "general", "generally",
    "typically", "contains", "provide", "provides", "become", "becomes", "using", "called", "considered", "described",
    "discussed", "shown", "including", "depending", "related", "based", "mostly", "almost", "already", "always", "problem",
    "simple", "supplementary",
])  # fmt: skip


def cloze(passage: Passage) -> list[Candidate]:
    """A sentence with a formula, a quantity, an acronym or a rare word taken out."""
    found = []
    words = Counter(word.lower() for word in _TERM.findall(passage.text))
    for sentence in passage.sentences:
        if understandable(sentence) and len(found) < MAX_CLOZES:
            found += _blank(passage, sentence, words, minimum=0.5)
    return found


def any_cloze(passage: Passage) -> list[Candidate]:
    """For sections that nothing else asks about: a blank in any sentence, the most telling word first."""
    words = Counter(word.lower() for word in _TERM.findall(passage.text))
    found = []
    for sentence in map(_fragment, passage.sentences):
        if sentence.num_words >= 4 and "|" not in sentence.text:
            whole = sentence.text.endswith((".", "!", "?")) and not sentence.text[0].islower()
            blanks = _blank(passage, sentence, words, minimum=0.0)
            found += blanks if whole else [replace(blank, quality=blank.quality - FRAGMENT) for blank in blanks]
    return sorted(found, key=lambda candidate: (not candidate.evidence.text.endswith("."), -candidate.quality))[:MAX_CLOZES]


def _blank(passage: Passage, sentence: Sentence, words: Counter[str], minimum: float) -> list[Candidate]:
    """The best blanks for one sentence; an answer stands once in the sentence."""
    text, lowered = sentence.text, sentence.text.lower()
    spans: list[tuple[float, int, int, Quantity | None]] = []
    for quantity in (quantity for quantity in passage.quantities[sentence.start] if quantity.stop <= len(text)):
        spans.append((0.6, quantity.start, quantity.stop, quantity))
    spans += [(0.62, start, stop, None) for _, start, stop in find_formulae(text)]
    spans += [(0.55, match.start(), match.end(), None) for match in _ACRONYM.finditer(text)]
    for match in _TERM.finditer(text):
        word = match[0].lower()
        if word not in COMMON and match.start():
            # A word the section is about: long, and used more than once.
            spans.append((0.3 + min(len(word), 15) / 100 + 0.05 * min(words[word], 3), match.start(), match.end(), None))
    found = []
    for quality, start, stop, quantity in sorted(spans, key=lambda span: (-span[0], span[1])):
        answer = text[start:stop]
        if quality < minimum or len(found) == MAX_BLANKS or (minimum == 0.0 and "\\" in text):
            break
        if (
            lowered.count(answer.lower()) != 1
            or text[start - 1 : start] == "("
            or answer[0] in "(["
            or _NUMBERED.search(text[:start])
        ):
            continue
        if _ADDRESS.search(text[max(0, start - 60) : stop + 40]):
            continue
        sentence_with_blank = text[:start] + BLANK + text[stop:]
        questions = (
            f"Complete this sentence from {ARTICLE}: {sentence_with_blank}",
            f"What belongs in the blank in this sentence of {ARTICLE}? {sentence_with_blank}",
            f"Fill in the blank as {ARTICLE} has it: {sentence_with_blank}",
        )
        accepted = (answer, *quantity_answers(quantity)) if quantity else (answer,)
        answer = quantity.text if quantity else answer
        found.append(Candidate("cloze", questions, answer, sentence, f"So the blank is {answer}.", quality, accepted))
    return found


def true_false(passage: Passage) -> list[Candidate]:
    """A sentence with one quantity, as it is or with another value in its place, by turns."""
    found = []
    for sentence in passage.sentences:
        quantities = passage.quantities[sentence.start]
        if (
            _ADDRESS.search(sentence.text)
            or len(quantities) != 1
            or _num_numbers(sentence.text, quantities[0])
            or not understandable(sentence, max_words=30)
        ):
            continue
        quantity = quantities[0]
        if _INSTRUMENT.search(sentence.text[: quantity.start]):
            continue
        other = _other_value(passage, quantity)
        true = len(found) % 2 == 1 or not other
        value = quantity.text if true else other
        statement = sentence.text[: quantity.start] + value + sentence.text[quantity.stop :]
        questions = (
            f"True or false, according to {ARTICLE}: {statement}",
            f"Is this statement true or false in the light of {ARTICLE}? {statement}",
        )
        answer = "True" if true else "False"
        conclusion = f"So the value is {quantity.text} and the statement is {answer.lower()}."
        found.append(
            Candidate(
                "true_false",
                questions,
                answer,
                sentence,
                conclusion,
                0.64,
                (answer, answer.lower()),
                supported=False,
                asked_for=quantity.text,
            )
        )
    return found


def _num_numbers(text: str, quantity: Quantity) -> int:
    """Numbers beside the quantity: with others about, it may be one of a list or of a range."""
    return len(re.findall(r"(?<![\w^.-])\d+(?:\.\d+)?(?![\w-])", text[: quantity.start] + " " + text[quantity.stop :]))


def _other_value(passage: Passage, quantity: Quantity) -> str:
    """Another value of the same unit from the section, otherwise twice the number."""
    for quantities in passage.quantities.values():
        for other in quantities:
            if other.unit == quantity.unit and other.value != quantity.value:
                return other.text
    try:
        doubled = 2 * float(quantity.value)
    except ValueError:
        return ""
    if quantity.unit == "%" and doubled > 100:
        doubled /= 4
    return quantity.text.replace(quantity.value, f"{doubled:g}", 1)


def summary(passage: Passage) -> list[Candidate]:
    """The section's main statement: a sentence that says it sums up; of an abstract or a conclusion, what the work did too."""
    says = _SAYS_DONE if passage.type in ("abstract", "conclusion") else _SUMS_UP
    usable = [each for each in passage.sentences if understandable(each, max_words=32) and says.search(each.text)]
    whole = not re.search(r"\(part \d+\)$", passage.title) and len(passage.sentences) >= 3
    return [_summary(passage, usable, 0.5)] if whole and usable else []


def any_summary(passage: Passage) -> list[Candidate]:
    """The same, from whatever sentences there are."""
    usable = [sentence for sentence in map(_fragment, passage.sentences) if sentence.num_words >= 3]
    plain = [sentence for sentence in usable if not re.search(r"[|=]|Copyright|^Fig", sentence.text)]
    usable = [sentence for sentence in plain if understandable(sentence)] or plain or usable
    return [_summary(passage, usable, 0.0)] if usable else []


def _fragment(sentence: Sentence) -> Sentence:
    """The sentence, or the beginning of one that is too long (lists and lost full stops)."""
    if sentence.num_words <= MAX_FRAGMENT_WORDS and len(sentence.text) <= MAX_FRAGMENT_CHARACTERS:
        return sentence
    ends = [match.end() for match in re.finditer(r"\S+", sentence.text)][:MAX_FRAGMENT_WORDS]
    stop = max((end for end in ends if end <= MAX_FRAGMENT_CHARACTERS), default=MAX_FRAGMENT_CHARACTERS)
    return Sentence(sentence.text[:stop], sentence.start, sentence.start + stop)


def _summary(passage: Passage, usable: list[Sentence], quality: float) -> Candidate:
    counts = Counter(word.lower() for word in _TERM.findall(passage.text))

    def centrality(sentence: Sentence) -> float:
        words = {word.lower() for word in _TERM.findall(sentence.text)} - COMMON
        return sum(counts[word] - 1 for word in words) / (8 + len(words)) + (0.5 if sentence.start == 0 else 0)

    best = max(usable, key=lambda sentence: (centrality(sentence), -sentence.start))
    questions = (
        f"What is the main statement of the section '{passage.title}' of {ARTICLE}?",
        f"Sum up the section '{passage.title}' of {ARTICLE} in one sentence.",
        f"Which sentence sums up the section '{passage.title}' of {ARTICLE}?",
    )
    return Candidate("summary", questions, best.text, best, "So this is the section's main statement.", quality, (best.text,))
