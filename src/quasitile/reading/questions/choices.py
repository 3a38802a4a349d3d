"""Rule for multiple choice: the right value or formula among others of its type."""

from __future__ import annotations

import re
from hashlib import blake2b

from quasitile.reading.formulae import find_formulae
from quasitile.reading.quantities import Quantity
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.phrases import understandable
from quasitile.reading.sentences import Sentence

BLANK = "____"
NUM_OPTIONS = 4
_FACTORS = (0.5, 2.0, 1.5, 0.25, 3.0)
_PLAIN = re.compile(r"\d+(?:\.\d+)?$")


def choice(passage: Passage) -> list[Candidate]:
    """A sentence with a blank for its one quantity or a formula, and four options of the same type."""
    found = []
    formulae = list(dict.fromkeys(formula for formula, _, _ in find_formulae(passage.text)))
    for sentence in passage.sentences:
        if not understandable(sentence, max_words=35):
            continue
        quantities = passage.quantities[sentence.start]
        if len(quantities) == 1:
            quantity = quantities[0]
            wrong = other_values(passage, quantity)
            found += _choice(sentence, quantity.start, quantity.stop, quantity.text, wrong, "value")
        elif not quantities:
            named = find_formulae(sentence.text)
            if len(named) == 1:
                formula, start, stop = named[0]
                wrong = [other for other in formulae if other != formula]
                found += _choice(sentence, start, stop, formula, wrong, "formula")
    return found


def other_values(passage: Passage, quantity: Quantity) -> list[str]:
    """Wrong values in the same unit: those of the section first, then multiples of the right one."""
    values = {
        other.value: other.text
        for quantities in passage.quantities.values()
        for other in quantities
        if other.unit == quantity.unit and other.value != quantity.value
    }
    if _PLAIN.match(quantity.value):
        right, decimals = float(quantity.value), len(quantity.value.partition(".")[2])
        for factor in _FACTORS:
            value = f"{right * factor:.{decimals}f}"
            if float(value) and value != quantity.value and not (quantity.unit == "%" and float(value) > 100):
                values.setdefault(value, quantity.text.replace(quantity.value, value, 1))
    return list(values.values())


def _choice(sentence: Sentence, start: int, stop: int, answer: str, wrong: list[str], name: str) -> list[Candidate]:
    options = list(dict.fromkeys(option for option in wrong if option != answer))[: NUM_OPTIONS - 1]
    if len(options) < NUM_OPTIONS - 1 or sentence.text.count(sentence.text[start:stop]) != 1:
        return []
    # The order depends on the options only, so that it tells nothing and stays the same.
    options = sorted([answer, *options], key=lambda option: blake2b(f"{sentence.text}{option}".encode()).digest())
    listed = "; ".join(f"({letter}) {option}" for letter, option in zip("abcd", options, strict=True))
    letter = "abcd"[options.index(answer)]
    blank = sentence.text[:start] + BLANK + sentence.text[stop:]
    questions = (
        f"Which {name} belongs in the blank, according to {ARTICLE}? {blank} Choose from: {listed}.",
        f"Choose the {name} that {ARTICLE} has in place of the blank: {blank} Options: {listed}.",
        f"{blank} Which of these stands there in {ARTICLE}? {listed}.",
    )
    conclusion = f"So the {name} is {answer}, option ({letter})."
    accepted = (answer, f"({letter}) {answer}", f"({letter})", letter)
    return [Candidate("choice", questions, answer, sentence, conclusion, 0.66, accepted, choices=tuple(options))]
