"""Rule on the conditions of a step: temperature, time, pressure and atmosphere."""

from __future__ import annotations

import re

from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.lexicon import ATMOSPHERES, STEPS
from quasitile.reading.questions.phrases import inside_sentence, noun_phrase, strip_lead
from quasitile.reading.questions.properties import WRONG_AFTER, quantity_answers
from quasitile.reading.sentences import Sentence

_STEP_NAMES = "|".join(sorted(STEPS, key=len, reverse=True))
_STEP = re.compile(
    rf"(?:^|\b(?:was|were|is|are|and|then|and then|subsequently|or)\s)(?:\w+ly\s)?(?P<step>{_STEP_NAMES})\b", re.IGNORECASE
)
_BE = re.compile(r"\s(was|were|is|are)\s(?:\w+ly\s|then\s|first\s|further\s)?\w+")
_ATMOSPHERE = re.compile(
    r"\b(?:in|under) (?P<gas>(?:an? )?(?:(?:flowing|pure|dry|ambient|static|high|ultra-high|controlled) )?"
    rf"(?:{ATMOSPHERES})(?: (?:atmosphere|gas|flow))?)(?=[\s,.;)]|$)"
)
_OTHER_CLAUSE = re.compile(r"[;:]|, (?:and|then)|\b(?:after|before|until|followed|which|while|with|using|by)\b")
# Kind of quantity: what stands before it where it is a condition of a step.
CONDITIONS = {
    "temperature": r"\b(?P<how>at|to|up to)\s(?:a temperature of\s|temperatures of\s)?"
    r"(?:about\s|approximately\s|around\s|~\s?)?$",
    "time": r"\b(?P<how>for)\s(?:a duration of\s)?(?:about\s|approximately\s|around\s|another\s|~\s?)?$",
    "pressure": r"\b(?P<how>at|under|to)\s(?:an?\s(?:\w+\s)?pressure of\s)?(?:about\s|approximately\s|~\s?)?$",
}


def condition(passage: Passage) -> list[Candidate]:
    """Temperature, time, pressure and atmosphere of a step: `The pellets were sintered at 1200 °C for 5 h in air`."""
    found = []
    for sentence in passage.sentences:
        text = strip_lead(sentence.text)
        be = _BE.search(text)
        if be is None or sentence.num_words > 60:
            continue
        subject = noun_phrase(text[: be.start()].rsplit(", ", 1)[-1])
        if not subject or (subject != text[: be.start()] and not subject.lower().startswith("the ")):
            continue
        subject = inside_sentence(subject, passage.text)
        shift = len(sentence.text) - len(text)
        for kind, preposition in CONDITIONS.items():
            for quantity in (quantity for quantity in passage.quantities[sentence.start] if quantity.kind == kind):
                before = text[: max(0, quantity.start - shift)]
                how = re.search(preposition, before)
                step = _step(before[: how.start()], be.start()) if how else ""
                if how and step and not WRONG_AFTER.match(sentence.text[quantity.stop :]):
                    found.append(
                        _condition(kind, how["how"], subject, be[1], step, quantity.text, quantity_answers(quantity), sentence)
                    )
        for gas in _ATMOSPHERE.finditer(text):
            step = _step(text[: gas.start()].rstrip(), be.start())
            if step:
                answer = re.sub(r"^an? ", "", gas["gas"])
                accepted = (answer, gas["gas"], re.sub(r"\s(?:atmosphere|gas|flow)$", "", answer))
                found.append(_condition("atmosphere", "in", subject, be[1], step, answer, accepted, sentence))
    keys = [(candidate.questions[0], candidate.evidence.start) for candidate in found]
    return [candidate for candidate, key in zip(found, keys, strict=True) if keys.count(key) == 1]


def _step(before: str, be_start: int) -> str:
    """The step a condition belongs to: the last one named, in the same clause and not far off."""
    steps = [match for match in _STEP.finditer(before) if match.start() >= be_start - 1]
    if not steps or _OTHER_CLAUSE.search(before[steps[-1].end() :]):
        return ""
    return steps[-1]["step"].lower() if len(before) - steps[-1].end() <= 60 else ""


def _condition(
    kind: str, how: str, subject: str, be: str, step: str, answer: str, accepted: tuple[str, ...], sentence: Sentence
) -> Candidate:
    act = f"{be} {subject} {step}"
    if kind == "time":
        questions = (
            f"For how long {act} in {ARTICLE}?",
            f"According to {ARTICLE}, {subject} {be} {step} for what time?",
            f"In {ARTICLE}, what is the time for which {subject} {be} {step}?",
        )
    elif kind == "atmosphere":
        questions = (
            f"In which atmosphere {act} in {ARTICLE}?",
            f"What was the atmosphere in which {subject} {be} {step} in {ARTICLE}?",
            f"According to {ARTICLE}, {subject} {be} {step} in which atmosphere?",
        )
    else:
        how = "to" if how.endswith("to") else how
        questions = (
            f"{how.capitalize()} what {kind} {act} in {ARTICLE}?",
            f"In {ARTICLE}, what is the {kind} {how} which {subject} {be} {step}?",
            f"According to {ARTICLE}, {subject} {be} {step} {how} what {kind}?",
        )
    return Candidate("condition", questions, answer, sentence, f"So the {kind} is {answer}.", 0.9, accepted)
