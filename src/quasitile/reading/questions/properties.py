"""Rule on properties: what has how much of what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from quasitile.reading.quantities import Quantity
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.measured import Measured, find_measured
from quasitile.reading.questions.phrases import (
    inside_sentence,
    is_plural,
    names_formula,
    noun_phrase,
    quotable,
    strip_lead,
    understandable,
)
from quasitile.reading.sentences import Sentence

_HAS = re.compile(
    r"(?P<material>[^,;]{2,80}?) (?:has|have|had|exhibits?|exhibited|shows?|showed|possess(?:es|ed)?|delivers?|"
    r"delivered|displays?|displayed|reache?s?d?|achieves?d?|yields?|yielded|provides?|provided|attain(?:s|ed)?|presents?|"
    r"presented|retain(?:s|ed)?|gives?|gave|maintain(?:s|ed)?) (?:an?|the)?\s?"
)
_WITH = re.compile(
    r"(?P<material>\b[A-Za-z][^,;:]{2,60}?),? (?:with|having|possessing|featuring|exhibiting|showing|delivering) (?:an?|the)\s"
)
_UNDER = re.compile(r"\b(?P<how>at|under|using|with) (?:an?|the)\s$", re.IGNORECASE)
_PASSIVE = re.compile(
    r"^(?P<subject>[^,;:]{3,80}?) (?P<be>was|were|is|are) (?P<step>(?:\w+ly )?[a-z-]+ed|carried out|grown|done)\b"
)
_AT = re.compile(
    r"^ at (?:room temperature|ambient temperature|[^ ,.;]+ (?:°C|K|MPa|GPa|V|Hz|kHz|mA g\^-1|A g\^-1|C))(?![\w^/])"
)
_JOINED = re.compile(r"\b(?:of|on|by|using|from|into|in|to|through|and|as|is|was|were|are)\s")
_AND = re.compile(r",\s(?:and\s)?|\sand\s")
_RESPECTIVELY = re.compile(r"^(?: (?:for|in) (?P<bearers>[^;:()]{3,100}?))?,? respectively\b")
# A value that is compared, counted or goes on is none of its own.
WRONG_AFTER = re.compile(
    r"^\s?(?:higher|lower|larger|smaller|greater|less|more|thick|of (?:the|that|its|their)|times|and \d|or \d|to \d|,? "
    r"\d|,? and \d|per\b|/|\(?±|[-–]\s?\d|\S* and \S* for|[^.;]* respectively)"
)
_PLAIN = re.compile(r"\d+(?:\.\d+)?")
_COMPARED = re.compile(
    r"^\s?(?:higher|lower|larger|smaller|greater|less|more|faster|slower|longer|shorter|better|above|below|times|per\b|[/·×^]|\(?±|"
    r"[-–]\s?\d|e\d)"
)


def quantity_answers(quantity: Quantity) -> tuple[str, ...]:
    """Ways to write one quantity that count as right."""
    value, unit = quantity.value, quantity.unit
    forms = [quantity.text, f"{value} {unit}".strip(), f"{value}{unit}", value]
    if "-" in value[1:]:
        low, _, high = value[1:].partition("-")
        forms.append(f"{value[0]}{low} to {high} {unit}".strip())
    return tuple(dict.fromkeys(forms))


def property_value(passage: Passage) -> list[Candidate]:
    """`The gap of X is 1.55 eV`, `X with a density of 5 g cm^-3`, `X was tested at a rate of 5 mV/s`, `The rate was 5 K`."""
    found = []
    for sentence in passage.sentences:
        quantities = passage.quantities[sentence.start]
        measured = find_measured(sentence.text, quantities)
        sizes = _list_sizes(measured)
        for index, each in enumerate(measured):
            if not _COMPARED.match(sentence.text[each.stop :]):
                candidate = _ask(passage, sentence, each, measured[index - each.chain :][: sizes[index]])
                found += [candidate] if candidate else []
    return found


def compared_values(passage: Passage) -> Iterator[tuple[Sentence, str, str, str, str]]:
    """Sentences that give one property of two things: property, the thing with more of it, the one with less, both values."""
    for sentence in passage.sentences:
        measured = find_measured(sentence.text, passage.quantities[sentence.start]) if "respectively" in sentence.text else []
        for index, (first, second) in enumerate(pairwise(measured)):
            named = _bearers(sentence, [first, second]) if second.chain == 1 and _list_sizes(measured)[index] == 2 else []
            sizes = [float(each.quantity.value) for each in (first, second) if _PLAIN.fullmatch(each.quantity.value)]
            if not named or len(sizes) < 2 or sizes[0] == sizes[1] or first.quantity.unit != second.quantity.unit:
                continue
            more, less = named if sizes[0] > sizes[1] else named[::-1]
            yield sentence, first.name, more, less, f"{_answer(first)} and {_answer(second)}"


def _list_sizes(measured: list[Measured]) -> list[int]:
    """How many values stand in the list that each value belongs to."""
    sizes = [1] * len(measured)
    for index, each in enumerate(measured):
        for before in range(index - each.chain, index + 1):
            sizes[before] = max(sizes[before], each.chain + 1)
    return sizes


def _ask(passage: Passage, sentence: Sentence, measured: Measured, listed: list[Measured]) -> Candidate | None:
    """The best question for one value; its neighbours in a list are given."""
    text = sentence.text
    lead = len(text) - len(strip_lead(text))
    before, after = text[lead : measured.name_start], text[measured.stop :]
    if len(listed) > 1:
        return _listed(passage, sentence, measured, listed) or _statement(sentence, measured)
    whole = measured.quantity.kind != "number" and not WRONG_AFTER.match(after)
    if whole and measured.how == "borne":
        material = noun_phrase(measured.bearer)
        if material:
            return _of(passage, sentence, measured, material, after)
    elif whole and measured.how == "of":
        candidate = _had(passage, sentence, measured, before, after) or _applied(passage, sentence, measured, before)
        if candidate:
            return candidate
    elif whole and measured.how == "is" and before.lower() in ("the ", "a ", "an ") and len(measured.name.split()) > 1:
        return _plain(sentence, measured)
    return _statement(sentence, measured)


def _had(passage: Passage, sentence: Sentence, measured: Measured, before: str, after: str) -> Candidate | None:
    """`X has a NAME of`, `X with a NAME of`."""
    having = _HAS.fullmatch(before)
    material = noun_phrase(having["material"]) if having else ""
    if not material and (having := _WITH.search(before)) and having.end() == len(before):
        material = noun_phrase(_JOINED.split(having["material"])[-1])
        material = material if len(material.split()) > 1 else ""
    return _of(passage, sentence, measured, material, after) if material else None


def _applied(passage: Passage, sentence: Sentence, measured: Measured, before: str) -> Candidate | None:
    """`X was tested at a NAME of`."""
    under, passive = _UNDER.search(before), _PASSIVE.match(before)
    if under is None or passive is None or not 0 <= under.start() - passive.end() < 60:
        return None
    subject, between = noun_phrase(passive["subject"]), before[passive.end() : under.start()]
    if not subject or re.search(r"[,;:]|\b(?:and|then|after|before|which)\b", between):
        return None
    subject = inside_sentence(subject, passage.text)
    return _condition(sentence, measured, under["how"].lower(), passive["be"], passive["step"], subject)


def _listed(passage: Passage, sentence: Sentence, measured: Measured, listed: list[Measured]) -> Candidate | None:
    """`The NAME of A and B were 1 and 2 nm, respectively`, `The NAME was 1 and 2 nm for A and B, respectively`."""
    named = _bearers(sentence, listed)
    if not named:
        return None
    material = noun_phrase(named[measured.chain])
    return _of(passage, sentence, measured, material, "") if material else None


def _bearers(sentence: Sentence, listed: list[Measured]) -> list[str]:
    """What has the values of a list, in their order, where the sentence says `respectively`."""
    match = _RESPECTIVELY.match(sentence.text[listed[-1].stop :])
    named = [name.strip() for name in _AND.split((match["bearers"] or listed[0].bearer) if match else "") if name.strip()]
    shared = re.match(r".+?\s(?:in|of|for|at)\s", named[0]) if named else None  # `S in martensite and bainite`
    if shared and not any(re.search(r"\s(?:in|of|for|at)\s", name) for name in named[1:]):
        named = [named[0], *(shared[0] + name for name in named[1:])]
    return named if len(named) == len(listed) else []


def _accepted(measured: Measured) -> tuple[str, ...]:
    """Ways to write the answer; where it is a bound or a list, the value in it alone is none."""
    quantity = measured.quantity
    if measured.stop - measured.start == quantity.stop - quantity.start:
        return tuple(dict.fromkeys((*quantity_answers(quantity), measured.answer)))
    return (measured.answer,)


def _answer(measured: Measured) -> str:
    """The canonical writing of a plain value, otherwise the words."""
    quantity = measured.quantity
    alone = measured.stop - measured.start == quantity.stop - quantity.start
    return quantity.text.strip() if alone else measured.answer


def _of(passage: Passage, sentence: Sentence, measured: Measured, material: str, after: str) -> Candidate:
    where, name, answer = _AT.match(after), measured.name, _answer(measured)
    at = where[0] if where else ""
    material = inside_sentence(material, passage.text)
    scope = "" if names_formula(material) else f" in {ARTICLE}"
    have, article = "have" if is_plural(material) else "has", "an" if name[0] in "aeiou" else "a"
    questions = (
        f"What is the {name} of {material}{at}{scope}?",
        f"Which value is given for the {name} of {material}{at}{scope}?",
        f"{material[0].upper()}{material[1:]} {have} {article} {name} of what value{at}{scope}?",
        f"How large is the {name} of {material}{at}{scope}?",
    )
    conclusion = f"So the {name} of {material}{at} is {answer}."
    return Candidate("property", questions, answer, sentence, conclusion, 0.95, _accepted(measured))


def _plain(sentence: Sentence, measured: Measured) -> Candidate:
    name, answer = measured.name, _answer(measured)
    questions = (
        f"What was the {name} in {ARTICLE}?",
        f"Which {name} does {ARTICLE} state?",
        f"Which value is given for the {name} in {ARTICLE}?",
    )
    return Candidate("property", questions, answer, sentence, f"So the {name} is {answer}.", 0.8, _accepted(measured))


def _condition(sentence: Sentence, measured: Measured, how: str, be: str, step: str, subject: str) -> Candidate:
    name, answer = measured.name, _answer(measured)
    questions = (
        f"{how.capitalize()} what {name} {be} {subject} {step} in {ARTICLE}?",
        f"In {ARTICLE}, what is the {name} {how} which {subject} {be} {step}?",
        f"According to {ARTICLE}, {subject} {be} {step} {how} what {name}?",
    )
    if how == "using":
        questions = (f"What {name} was used when {subject} {be} {step} in {ARTICLE}?", questions[2])
    return Candidate("property", questions, answer, sentence, f"So the {name} is {answer}.", 0.85, _accepted(measured))


def _statement(sentence: Sentence, measured: Measured) -> Candidate | None:
    """For a value whose bearer the rule cannot name: the sentence with the value left out."""
    plain = understandable(sentence)
    if not plain and not quotable(sentence):
        return None
    name, answer = measured.name, _answer(measured)
    blank = f"{sentence.text[: measured.start]}____{sentence.text[measured.stop :]}"
    questions = (
        f"Which {name} does {ARTICLE} give here: {blank}",
        f"What is the {name} that is left out of this statement of {ARTICLE}? {blank}",
    )
    said = sentence.text[measured.name_start : measured.name_stop]
    conclusion = f"So the {name} is {answer}." if measured.how != "after" else f"So it reads '{answer} {said}'."
    return Candidate("property", questions, answer, sentence, conclusion, 0.68 if plain else 0.45, _accepted(measured))
