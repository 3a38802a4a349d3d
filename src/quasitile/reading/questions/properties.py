"""Rule on properties: what has how much of what."""

from __future__ import annotations

import re

from quasitile.reading.quantities import Quantity
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.lexicon import EPONYMS, MEASURES, PROPERTIES
from quasitile.reading.questions.phrases import (
    inside_sentence,
    is_plural,
    names_formula,
    noun_phrase,
    strip_lead,
    understandable,
)
from quasitile.reading.sentences import Sentence

_HEADS = "|".join(sorted(map(re.escape, {*MEASURES, *(name.split()[-1] for name in PROPERTIES)}), key=len, reverse=True))
_NAME = rf"(?:[A-Za-z][\w'/-]*\s){{0,4}}?(?:{_HEADS})"
# "More than" and "up to" are left out: they bound a value and do not give it.
ABOUT = r"(?:about|around|approximately|ca\.|roughly|nearly|almost|close to|as high as|as low as|only|~|≈|equal to)?\s?$"
_SYMBOL = r"(?:\s\([^()]{1,20}\)|,? [A-Za-z]{1,2}(?:_\w+)?,?)?"
_IS = (
    r"(?:is|was|are|were|reaches|reached|equals|amounts? to|amounted to|decreases to|decreased to|increases to|increased to|"
    r"(?:is|was|were|are) (?:set to|set at|kept at|fixed at|fixed to|maintained at|chosen as|adjusted to)|"
    r"(?:is|was|were|are) (?:then |also |thus )?(?:found|measured|determined|calculated|estimated|reported|observed) to be|"
    r"(?:is|was|were|are) (?:measured|calculated|estimated|determined|found|reported|obtained) (?:as|at))"
)
_OF = re.compile(rf"\b(?P<property>{_NAME})s?{_SYMBOL} (?:of|for|in) (?P<material>[^,;]{{2,70}}?) {_IS} {ABOUT}", re.IGNORECASE)
_BARE = re.compile(rf"^(?:the|an?) (?P<property>{_NAME}){_SYMBOL} {_IS} {ABOUT}", re.IGNORECASE)
_HAS = re.compile(
    r"^(?P<material>[^,;]{2,80}?) (?P<verb>has|have|had|exhibits?|exhibited|shows?|showed|possess(?:es|ed)?|delivers?|"
    r"delivered|displays?|displayed|reache?s?d?|achieves?d?|yields?|yielded|provides?|provided|attain(?:s|ed)?|presents?|"
    r"presented|retain(?:s|ed)?|gives?|gave|maintain(?:s|ed)?) (?:an?|the)?\s?"
    rf"(?P<property>{_NAME}){_SYMBOL} of {ABOUT}",
    re.IGNORECASE,
)
_WITH = re.compile(
    rf"(?P<material>\b[A-Za-z][^,;:]{{2,60}}?),? (?:with|having|possessing|featuring) (?:an?|the)\s(?P<property>{_NAME})"
    rf"{_SYMBOL} of {ABOUT}",
    re.IGNORECASE,
)
_UNDER = re.compile(
    rf"\b(?P<how>at|under|using|with) (?:an?|the)\s(?P<property>{_NAME}){_SYMBOL} of {ABOUT}",
    re.IGNORECASE,
)
_PASSIVE = re.compile(
    r"^(?P<subject>[^,;:]{3,80}?) (?P<be>was|were|is|are) (?P<step>(?:\w+ly )?[a-z-]+ed|carried out|grown|done)\b"
)
_AT = re.compile(
    r"^ at (?:room temperature|ambient temperature|[^ ,.;]+ (?:°C|K|MPa|GPa|V|Hz|kHz|mA g\^-1|A g\^-1|C))(?![\w^/])"
)
_JUDGING = re.compile(
    r"\b(?:high|higher|low|lower|large|larger|good|excellent|superior|enhanced|improved|remarkable|the|an?|constant|similar|"
    r"certain|corresponding|resulting|obtained|measured|reported|respective|also|only|and|very|same|fixed|given|its|their|"
    r"this|that|these|those|our|such|new|typical|different)\s",
    re.IGNORECASE,
)
_NOT_NAMES = re.compile(
    r"\b(?:of|in|for|and|or|to|is|are|was|were|by|with|at|on|from|than|as|between|which|where|per|that|indicates?|shows?|reveals?|using)\b"
)
WRONG_AFTER = re.compile(
    r"^\s?(?:higher|lower|larger|smaller|greater|less|more|thick|of (?:the|that|its|their)|times|and \d|or \d|to \d|,? "
    r"\d|,? and \d|per\b|/|\(?±|[-–]\s?\d|\S* and \S* for|[^.;]* respectively)"
)


def quantity_answers(quantity: Quantity) -> tuple[str, ...]:
    """Ways to write one quantity that count as right."""
    value, unit = quantity.value, quantity.unit
    forms = [quantity.text, f"{value} {unit}", f"{value}{unit}", value]
    if "-" in value[1:]:
        low, _, high = value[1:].partition("-")
        forms.append(f"{value[0]}{low} to {high} {unit}")
    return tuple(dict.fromkeys(forms))


def property_value(passage: Passage) -> list[Candidate]:
    """`The gap of X is 1.55 eV`, `X with a density of 5 g cm^-3`, `X was tested at a rate of 5 mV/s`, `The rate was 5 K`."""
    found = []
    for sentence in passage.sentences:
        lead = len(sentence.text) - len(strip_lead(sentence.text))
        for quantity in passage.quantities[sentence.start]:
            before, after = sentence.text[lead : quantity.start], sentence.text[quantity.stop :]
            if WRONG_AFTER.match(after) or not re.search(rf"{_HEADS}", before, re.IGNORECASE):
                continue
            candidate = _ask(passage, sentence, before, quantity, after)
            if candidate:
                found.append(candidate)
    return found


def _ask(passage: Passage, sentence: Sentence, before: str, quantity: Quantity, after: str) -> Candidate | None:
    """The first reading that fits the words before a quantity."""
    match = _last(_OF, before) or _HAS.match(before)
    if match:
        name, material = _property_name(match["property"], quantity), noun_phrase(match["material"])
        return _of(passage, sentence, name, material, quantity, after) if name and material else None
    bare = _BARE.match(before)
    if bare:
        name = _property_name(bare["property"], quantity)
        return _plain(sentence, name, quantity) if name and len(name.split()) > 1 else None
    under = _last(_UNDER, before)
    passive = _PASSIVE.match(before)
    if under and passive and under.start() >= passive.end() and under.start() - passive.end() < 60:
        name, subject = _property_name(under["property"], quantity), noun_phrase(passive["subject"])
        between = before[passive.end() : under.start()]
        if name and subject and not re.search(r"[,;:]|\b(?:and|then|after|before|which)\b", between):
            subject = inside_sentence(subject, passage.text)
            return _condition(sentence, name, under["how"].lower(), passive["be"], passive["step"], subject, quantity)
    having = _last(_WITH, before)
    if having:
        name = _property_name(having["property"], quantity)
        material = noun_phrase(
            re.split(r"\b(?:of|on|by|using|from|into|in|to|through|and|as|is|was|were|are)\s", having["material"])[-1]
        )
        if name and material and len(material.split()) > 1:
            return _of(passage, sentence, name, material, quantity, after)
    named = under or having
    name = _property_name(named["property"], quantity) if named else ""
    return _statement(sentence, name, quantity) if name and understandable(sentence) else None


def _last(pattern: re.Pattern[str], before: str) -> re.Match[str] | None:
    """The match nearest to the quantity, with as much of the property's name as stands before it."""
    matches, start = [], max(0, len(before) - 200)
    while match := pattern.search(before, start):
        matches.append(match)
        start = match.start() + 1
    if not matches:
        return None
    stop = matches[-1].end("property")
    whole = (match for match in matches if match.end("property") == stop and not _NOT_NAMES.search(match["property"]))
    return next(whole, matches[-1])


def _property_name(name: str, quantity: Quantity) -> str:
    """The property without judging words, or nothing where the unit belongs to another kind of property."""
    before = None
    while name != before:
        before, name = name, _JUDGING.sub("", name).strip()
    if not name or _NOT_NAMES.search(name):
        return ""
    known = next((each for each in sorted(PROPERTIES, key=len, reverse=True) if name.lower().endswith(each)), "")
    kinds = (PROPERTIES[known] if known else MEASURES.get(name.split()[-1].lower(), "")).split()
    if kinds and quantity.kind.rstrip("*") not in kinds:
        return ""
    return name if name[1:2].isupper() or name.split()[0] in EPONYMS else name[0].lower() + name[1:]


def _of(passage: Passage, sentence: Sentence, name: str, material: str, quantity: Quantity, after: str) -> Candidate:
    where = _AT.match(after)
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
    conclusion = f"So the {name} of {material}{at} is {quantity.text}."
    return Candidate("property", questions, quantity.text, sentence, conclusion, 0.95, quantity_answers(quantity))


def _plain(sentence: Sentence, name: str, quantity: Quantity) -> Candidate:
    questions = (
        f"What was the {name} in {ARTICLE}?",
        f"Which {name} does {ARTICLE} state?",
        f"Which value is given for the {name} in {ARTICLE}?",
    )
    conclusion = f"So the {name} is {quantity.text}."
    return Candidate("property", questions, quantity.text, sentence, conclusion, 0.8, quantity_answers(quantity))


def _condition(sentence: Sentence, name: str, how: str, be: str, step: str, subject: str, quantity: Quantity) -> Candidate:
    questions = (
        f"{how.capitalize()} what {name} {be} {subject} {step} in {ARTICLE}?",
        f"In {ARTICLE}, what is the {name} {how} which {subject} {be} {step}?",
        f"According to {ARTICLE}, {subject} {be} {step} {how} what {name}?",
    )
    if how == "using":
        questions = (f"What {name} was used when {subject} {be} {step} in {ARTICLE}?", questions[2])
    conclusion = f"So the {name} is {quantity.text}."
    return Candidate("property", questions, quantity.text, sentence, conclusion, 0.85, quantity_answers(quantity))


def _statement(sentence: Sentence, name: str, quantity: Quantity) -> Candidate:
    """For a value whose bearer the rule cannot name: the sentence with the value left out."""
    blank = f"{sentence.text[: quantity.start]}____{sentence.text[quantity.stop :]}"
    questions = (
        f"Which {name} does {ARTICLE} give here: {blank}",
        f"What is the {name} that is left out of this statement of {ARTICLE}? {blank}",
    )
    conclusion = f"So the {name} is {quantity.text}."
    return Candidate("property", questions, quantity.text, sentence, conclusion, 0.68, quantity_answers(quantity))
