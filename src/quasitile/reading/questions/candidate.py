"""What a rule is given (a passage) and what it gives back (candidates)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from quasitile.reading.quantities import Quantity, find_quantities
from quasitile.reading.sentences import Sentence, split_sentences

ARTICLE = "{article}"  # stands for the article's name in a question until the record is written
MAX_TITLE_CHARACTERS = 100


@dataclass(frozen=True)
class Passage:
    """A section as rules see it."""

    article: str
    title: str
    type: str
    text: str

    @cached_property
    def sentences(self) -> list[Sentence]:
        """The section's sentences, with offsets into `text`."""
        return split_sentences(self.text)

    @cached_property
    def quantities(self) -> dict[int, list[Quantity]]:
        """Quantities of each sentence, by the sentence's start; offsets count in the sentence."""
        return {sentence.start: find_quantities(sentence.text) for sentence in self.sentences}


@dataclass(frozen=True)
class Candidate:
    """One fact: the same question in several wordings, its answer, and the sentence that holds it.

    `conclusion` is the last sentence of the trace, `supported` whether the answer must stand in the
    evidence word for word (not so for true and false).
    """

    kind: str
    questions: tuple[str, ...]
    answer: str
    evidence: Sentence
    conclusion: str
    quality: float
    accepted: tuple[str, ...] = ()
    supported: bool = True
    source: str = "rules"
    trace: str = field(default="")
    choices: tuple[str, ...] = ()
    asked_for: str = ""  # what a choice or a true-or-false question turns on, where the answer does not say it


def name_article(question: str, title: str) -> str:
    """Put the article's title where a question refers to it; a long title is cut at a word."""
    if len(title) > MAX_TITLE_CHARACTERS:
        title = title[: title.rfind(" ", 0, MAX_TITLE_CHARACTERS)].rstrip(" ,;:-") + " ..."
    return question.replace(ARTICLE, f"the article '{title}'")
