"""Rules on single facts: a property with its value, a condition of a step, what something consists of."""

from __future__ import annotations

import re

from quasitile.reading.quantities import Quantity
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.lexicon import ATMOSPHERES, EPONYMS, PROPERTIES, STEPS
from quasitile.reading.questions.phrases import clip, inside_sentence, names_formula, noun_phrase, strip_lead
from quasitile.reading.sentences import Sentence

_PROPERTY = "|".join(sorted(map(re.escape, PROPERTIES), key=len, reverse=True))
_ABOUT = r"(?:about|around|approximately|ca\.|roughly|nearly|almost|close to|as high as|as low as|up to|only|~|≈|over|more than|above)?\s?$"
_OF = re.compile(
    rf"(?P<property>(?:\b[a-z-]+\s)?\b(?:{_PROPERTY}))s? (?:of|for|in) (?P<material>[^,;]{{2,60}}?) (?:is|was|are|were|reaches|reached|"
    rf"equals|amounts to|(?:is|was) (?:found|measured|determined|calculated|estimated|reported) to be|(?:is|was) (?:measured|"
    rf"calculated|estimated|determined) as) {_ABOUT}",
    re.IGNORECASE,
)
_HAS = re.compile(
    rf"^(?P<material>[^,;]{{2,70}}?) (?P<verb>has|have|had|exhibits?|exhibited|shows?|showed|possess(?:es|ed)?|delivers?|delivered|displays?|"
    rf"displayed|reache?s?d?|achieves?d?|yields?|yielded|provides?|provided) (?:an?|the) (?P<property>(?:[a-z-]+\s){{0,2}}?\b(?:{_PROPERTY})) of {_ABOUT}",
    re.IGNORECASE,
)
_AT = re.compile(
    r"^ at (?:room temperature|ambient temperature|[^ ,.;]+ (?:°C|K|MPa|GPa|V|Hz|kHz|mA g\^-1|A g\^-1|C))(?![\w^/])"
)
_JUDGING = re.compile(
    r"\b(?:high|higher|highest|low|lower|lowest|large|larger|good|excellent|superior|enhanced|improved|remarkable|the|an?)\s",
    re.IGNORECASE,
)
_WRONG_AFTER = re.compile(
    r"^\s?(?:higher|lower|larger|smaller|greater|less|more|thick|of (?:the|that|its|their)|times|and \d|or \d|to \d|,? \d|per\b|/)"
)
_STEP = re.compile(
    rf"(?:^|\b(?:was|were|is|are|and|then|and then|subsequently|or)\s)(?:\w+ly\s)?(?P<step>{'|'.join(sorted(STEPS, key=len, reverse=True))})\b",
    re.IGNORECASE,
)
_BE = re.compile(r"\s(was|were|is|are)\s(?:\w+ly\s|then\s|first\s|further\s)?\w+")
_ATMOSPHERE = re.compile(
    rf"\b(?:in|under) (?P<gas>(?:an? )?(?:(?:flowing|pure|dry|ambient|static|high|ultra-high|controlled) )?(?:{ATMOSPHERES})(?: (?:atmosphere|gas|flow))?)(?=[\s,.;)]|$)"
)
_CONSISTS = re.compile(
    r"^(?P<subject>[^,;]{3,70}?) (?P<verb>consists? of|consisted of|(?:is|are|was|were) composed of|comprises?|comprised|contains?|contained|"
    r"(?:is|are|was|were) doped with) (?P<parts>.+)$"
)
# Dimension of a condition: the preposition before it, and how it is asked for.
CONDITIONS = {
    "temperature": (
        r"\b(?P<how>at|to|up to)\s(?:a temperature of\s|temperatures of\s)?(?:about\s|approximately\s|around\s|~\s?)?$",
        "temperature",
    ),
    "time": (r"\b(?P<how>for)\s(?:a duration of\s)?(?:about\s|approximately\s|around\s|another\s|~\s?)?$", "long"),
    "pressure": (r"\b(?P<how>at|under|to)\s(?:an?\s(?:\w+\s)?pressure of\s)?(?:about\s|approximately\s|~\s?)?$", "pressure"),
}


def quantity_answers(quantity: Quantity) -> tuple[str, ...]:
    """Ways to write one quantity that count as right."""
    value, unit = quantity.value, quantity.unit
    forms = [quantity.text, f"{value} {unit}", f"{value}{unit}", value]
    if "-" in value[1:]:
        low, _, high = value[1:].partition("-")
        forms.append(f"{value[0]}{low} to {high} {unit}")
    return tuple(dict.fromkeys(forms))


def property_value(passage: Passage) -> list[Candidate]:
    """`The band gap of X is 1.55 eV`, `X has a density of 5.2 g cm^-3`."""
    found = []
    for sentence in passage.sentences:
        for quantity in passage.quantities[sentence.start]:
            before, after = sentence.text[: quantity.start], sentence.text[quantity.stop :]
            match = _last(_OF, before) or _HAS.match(strip_lead(before))
            if match is None or _WRONG_AFTER.match(after):
                continue
            candidate = _property(passage, sentence, match, quantity, after)
            if candidate:
                found.append(candidate)
    return found


def _last(pattern: re.Pattern[str], before: str) -> re.Match[str] | None:
    """The match nearest to the end: a search from the last mention of a property."""
    best = None
    for match in re.finditer(rf"\b(?:[A-Za-z-]+\s)?(?:{_PROPERTY})s? (?:of|for|in) ", before, re.IGNORECASE):
        best = pattern.match(before, match.start()) or best
    return best


def _property(passage: Passage, sentence: Sentence, match: re.Match[str], quantity: Quantity, after: str) -> Candidate | None:
    name = _known(_JUDGING.sub("", match["property"]).strip())
    material = noun_phrase(match["material"])
    kinds = PROPERTIES[
        next(known for known in sorted(PROPERTIES, key=len, reverse=True) if name.lower().endswith(known))
    ].split()
    if not material or (kinds and quantity.kind.rstrip("*") not in kinds):
        return None
    material = inside_sentence(material, passage.text)
    where = _AT.match(after)
    at = where[0] if where else ""
    scope = "" if names_formula(material) else f" in {ARTICLE}"
    article = "an" if name[0] in "aeiou" else "a"
    questions = (
        f"What is the {name} of {material}{at}{scope}?",
        f"Which value is given for the {name} of {material}{at}{scope}?",
        f"{material[0].upper()}{material[1:]} {_has(match)} {article} {name} of what value{at}{scope}?",
        f"How large is the {name} of {material}{at}{scope}?",
    )
    conclusion = f"So the {name} of {material}{at} is {quantity.text}."
    return Candidate("property", questions, quantity.text, sentence, conclusion, 0.95, quantity_answers(quantity))


def _known(name: str) -> str:
    """The property's name with a small first letter, except eponyms and acronyms."""
    return name if name[1:2].isupper() or name.split()[0] in EPONYMS else name[0].lower() + name[1:]


def _has(match: re.Match[str]) -> str:
    plural = match.groupdict().get("verb", "") in ("have", "show", "exhibit") or match["material"].split()[-1].endswith(
        ("ples", "ells", "lms")
    )
    return "have" if plural else "has"


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
        for kind, (preposition, _) in CONDITIONS.items():
            for quantity in (quantity for quantity in passage.quantities[sentence.start] if quantity.kind == kind):
                before = text[: max(0, quantity.start - shift)]
                how = re.search(preposition, before)
                step = _step(before[: how.start()], be.start()) if how else ""
                if how and step and not _WRONG_AFTER.match(sentence.text[quantity.stop :]):
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
    if not steps or re.search(
        r"[;:]|, (?:and|then)|\b(?:after|before|until|followed|which|while|with|using|by)\b", before[steps[-1].end() :]
    ):
        return ""
    return steps[-1]["step"].lower() if len(before) - steps[-1].end() <= 60 else ""


def _condition(
    kind: str, how: str, subject: str, be: str, step: str, answer: str, accepted: tuple[str, ...], sentence: Sentence
) -> Candidate:
    act = f"{be} {subject} {step}"
    if kind == "time":
        questions = (
            f"For how long {act} in {ARTICLE}?",
            f"How long did it take in {ARTICLE} until {subject} had been {step}?",
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


def composition(passage: Passage) -> list[Candidate]:
    """`X consists of Y`, `X contains Y`, `X is doped with Y`."""
    found = []
    for sentence in passage.sentences:
        match = _CONSISTS.match(strip_lead(sentence.text))
        if match is None:
            continue
        subject, parts = noun_phrase(match["subject"]), clip(match["parts"], 12)
        if (
            not subject
            or len(parts) < 2
            or parts.split()[0].lower() in ("it", "this", "both", "only", "more", "less", "several", "many")
        ):
            continue
        subject = inside_sentence(subject, passage.text)
        verb, be = match["verb"], "are" if match["verb"] in ("consist of", "comprise", "contain", "are composed of") else "is"
        do = "do" if be == "are" else "does"
        if verb.endswith("doped with"):
            questions = (
                f"What {verb.split()[0]} {subject} doped with in {ARTICLE}?",
                f"Which dopant does {ARTICLE} name for {subject}?",
            )
        elif verb.startswith("contain"):
            questions = (
                f"What {do} {subject} contain, according to {ARTICLE}?",
                f"In {ARTICLE}, what is contained in {subject}?",
            )
        else:
            questions = (
                f"What {do} {subject} consist of, according to {ARTICLE}?",
                f"In {ARTICLE}, what {be} {subject} composed of?",
                f"Of what {be} {subject} made up in {ARTICLE}?",
            )
        found.append(Candidate("composition", questions, parts, sentence, f"So the answer is {parts}.", 0.8, (parts,)))
    return found
