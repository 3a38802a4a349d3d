"""Rules on materials: a property with its value, and what something consists of."""

from __future__ import annotations

import re

from quasitile.reading.quantities import Quantity
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.lexicon import EPONYMS, PROPERTIES
from quasitile.reading.questions.phrases import clip, inside_sentence, names_formula, noun_phrase, strip_lead, without_article
from quasitile.reading.sentences import Sentence

_PROPERTY = "|".join(sorted(map(re.escape, PROPERTIES), key=len, reverse=True))
_VAGUE_PARTS = frozenset(("it", "this", "both", "only", "more", "less", "several", "many"))
# "More than" and "up to" are left out: they bound a value and do not give it.
_ABOUT = r"(?:about|around|approximately|ca\.|roughly|nearly|almost|close to|as high as|as low as|~|≈)?\s?$"
_OF = re.compile(
    rf"(?P<property>(?:\b[a-z-]+\s)?\b(?:{_PROPERTY}))s? (?:of|for|in) (?P<material>[^,;]{{2,60}}?) "
    r"(?:is|was|are|were|reaches|reached|equals|amounts to|"
    r"(?:is|was) (?:found|measured|determined|calculated|estimated|reported) to be|"
    rf"(?:is|was) (?:measured|calculated|estimated|determined) as) {_ABOUT}",
    re.IGNORECASE,
)
_HAS = re.compile(
    r"^(?P<material>[^,;]{2,70}?) (?P<verb>has|have|had|exhibits?|exhibited|shows?|showed|possess(?:es|ed)?|delivers?|"
    r"delivered|displays?|displayed|reache?s?d?|achieves?d?|yields?|yielded|provides?|provided) (?:an?|the) "
    rf"(?P<property>(?:[a-z-]+\s){{0,2}}?\b(?:{_PROPERTY})) of {_ABOUT}",
    re.IGNORECASE,
)
_AT = re.compile(
    r"^ at (?:room temperature|ambient temperature|[^ ,.;]+ (?:°C|K|MPa|GPa|V|Hz|kHz|mA g\^-1|A g\^-1|C))(?![\w^/])"
)
_JUDGING = re.compile(
    r"\b(?:high|higher|highest|low|lower|lowest|large|larger|good|excellent|superior|enhanced|improved|remarkable|the|an?)\s",
    re.IGNORECASE,
)
WRONG_AFTER = re.compile(
    r"^\s?(?:higher|lower|larger|smaller|greater|less|more|thick|of (?:the|that|its|their)|times|and \d|or \d|to \d|,? "
    r"\d|per\b|/)"
)
_CONSISTS = re.compile(
    r"^(?P<subject>[^,;]{3,70}?) (?P<verb>consists? of|consisted of|(?:is|are|was|were) composed of|comprises?|"
    r"comprised|contains?|contained|"
    r"(?:is|are|was|were) doped with) (?P<parts>.+)$"
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
    """`The band gap of X is 1.55 eV`, `X has a density of 5.2 g cm^-3`."""
    found = []
    for sentence in passage.sentences:
        for quantity in passage.quantities[sentence.start]:
            before, after = sentence.text[: quantity.start], sentence.text[quantity.stop :]
            match = _last(_OF, before) or _HAS.match(strip_lead(before))
            if match is None or WRONG_AFTER.match(after):
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
            or parts.split()[0].lower() in _VAGUE_PARTS
            or without_article(parts).lower() in ("data", "sample", "samples", "material", "materials")
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
