"""Rules on relations: which is larger, and why."""

from __future__ import annotations

import re
from dataclasses import replace

from quasitile.reading.formulae import find_formulae
from quasitile.reading.quantities import find_quantities
from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.phrases import (
    POINTERS,
    clip,
    inside_sentence,
    is_plural,
    noun_phrase,
    strip_lead,
    understandable,
)
from quasitile.reading.questions.properties import compared_values
from quasitile.reading.sentences import Sentence

MAX_COMPARED_WORDS = 8
_ADJECTIVES = (
    r"higher|lower|larger|smaller|greater|stronger|weaker|longer|shorter|faster|slower|thicker|thinner|denser|harder|softer|"
    r"heavier|lighter|wider|narrower|finer|coarser|better|worse|cheaper|"
    r"bigger|easier|brighter|darker|deeper|closer|richer|poorer|simpler|safer|cooler|warmer|hotter|rougher|smoother|tougher|stiffer|cleaner|"
    r"purer|steeper|sharper|broader|(?:more|less) [a-z]{3,}(?:able|ible|ive|al|ic|ous|ent|ant|ed|ile|le|ve)"
)
_AGAINST = r"(?:than|,? (?:as |when )?compared (?:to|with))"
_END = (
    r"(?=[.,;](?!\d)|\s[\[(]|\s(?:because|due|owing|since|as|at|under|after|by|and|when|for|with|over|which|while|but|even)\b)"
)
_SECOND = rf"(?P<second>(?:[^,;.\[]|\.(?=\d)){{2,60}}?){_END}"
_RATHER = r"(?:(?:\w+ly|much|even|also|far|still|always|somewhat|slightly|a little|a bit|two times|three times) )*"
_OF = r"(?:that|those) (?:of|in|for|from|with) "
_THAN = re.compile(
    r"^(?P<first>[^,;]{3,60}?) (?P<be>is|are|was|were) "
    rf"{_RATHER}(?P<adjective>{_ADJECTIVES}) {_AGAINST} (?P<of>{_OF})?{_SECOND}"
)
_HAS_MORE = re.compile(
    r"^(?P<first>[^,;]{2,60}?) (?:has|have|had|shows?|showed|exhibits?|exhibited|possess(?:es)?|displays?|delivers?|delivered) "
    rf"(?:an? |the )?{_RATHER}(?P<adjective>{_ADJECTIVES}) (?P<property>[A-Za-z][\w -]{{2,40}}?) {_AGAINST} "
    rf"(?:{_OF})?{_SECOND}"
)
_COMPARED = re.compile(r"^(?:Compared|In comparison) (?:to|with) (?P<second>[^,]{2,60}), (?P<rest>.+)$")
# What may stand before the clause that compares.
_BEFORE = re.compile(
    r"^(?:(?:As|In|At|For|With|From|After|Under|On|Due|Because|By|When|While|Although)\b[^,]{2,80}, |"
    r"It (?:is|was|has been|can be) [^,;]{4,40} that |"
    r"(?:[^,;]{5,60}) (?:implies|implied|confirms?|confirmed|shows?|showed|indicates?|indicated|reveals?|revealed|"
    r"demonstrates?|"
    r"suggests?) that )"
)
_NUMBER = re.compile(r"\d\s?(?:nm|°C|%|K|eV|V|h)?$")
_CAUSE = re.compile(
    r"^(?P<effect>[^,;]{5,90}?) (?:is|are|was|were|can be|may be|could be) (?:\w+ly |also |partly )?"
    r"(?P<verb>attributed to|due to|caused by|ascribed to|explained by|because of|a result of|induced by|assigned to) "
    r"(?P<cause>.+)$"
)
_ARISES = re.compile(
    r"^(?P<effect>[^,;]{5,90}?) (?P<verb>results? from|resulted from|arises? from|originates? from|stems? from|comes? from) "
    r"(?P<cause>.+)$"
)
_BECAUSE = re.compile(
    r"^(?P<effect>[^,;:]{20,160}?),? (?:because of|due to|owing to|as a result of|because|since|thanks to) (?P<cause>[^;:]+)$"
)
_LEADS = re.compile(
    r"^(?P<cause>[^,;:]{5,90}?) (?:leads?|led|gives? rise|gave rise|results?|resulted|causes?|caused) (?:to|in|an?|the)\s"
    r"(?P<effect>[^,;:]{5,120})\.?$"
)
_CLAUSE = re.compile(
    r"\s(?:is|are|was|were|has|have|had|can|could|cannot|increased?s?|decreased?s?|shows?|showed|remains?|remained|becomes?)\b"
)
_VAGUE = frozenset(
    ("this", "these", "it", "its", "their", "such", "both", "several", "two", "three", "many", "some", "various", "different")
)


def comparison(passage: Passage) -> list[Candidate]:
    """`The gap of A is larger than that of B`, `A has a larger gap than B`, `The gaps of A and B are 2 and 1 eV`."""
    found = []
    for sentence in passage.sentences:
        match = _comparing(strip_lead(sentence.text))
        if match is None:
            continue
        first, second, name = match["first"], match["second"], match.groupdict().get("property") or ""
        if match.groupdict().get("of"):
            head, _, first = _partition(first)
            name = head.removeprefix("The ").removeprefix("the ")
        elif " of " in first and "property" not in match.groupdict():
            continue
        first, second = noun_phrase(first, MAX_COMPARED_WORDS), noun_phrase(second, MAX_COMPARED_WORDS)
        if (
            not first
            or not second
            or (match.groupdict().get("of") and not noun_phrase(name, 5))
            or not re.search(r"[A-Za-z]{3}|\d", second)
        ):
            continue
        first, second = inside_sentence(first, passage.text), inside_sentence(second, passage.text)
        if second.split()[-1] in ("one", "ones") or second.split()[0] in ("either", "both") or find_quantities(second):
            continue
        number = _NUMBER.search(second) and not find_formulae(second)
        if (
            number
            or second.split()[0] in ("before", "expected", "predicted", "previously", "reported", "usual")
            or first.lower() == second.lower()
        ):
            continue
        found.append(_comparison(first, second, match["adjective"], name, match.groupdict().get("be") or "is", sentence))
    for sentence, name, more, less, values in compared_values(passage):
        if noun_phrase(more, MAX_COMPARED_WORDS) and noun_phrase(less, MAX_COMPARED_WORDS):
            candidate = _comparison(more, less, "larger", name, "is", sentence)
            found.append(replace(candidate, conclusion=f"The values are {values}. {candidate.conclusion}"))
    return found


def _partition(phrase: str) -> tuple[str, str, str]:
    """`the hardness of A`, `the manganese content in A`: the property, and what has it."""
    match = re.match(r"(.+?)( of | in | for )(.+)", phrase)
    return (match[1], match[2], match[3]) if match else (phrase, "", "")


def _comparing(text: str) -> re.Match[str] | None:
    """The clause that compares: the whole sentence, what follows its opening, or `Compared with B, A is larger`."""
    if " than " not in text and " compared " not in text and "ompar" not in text[:12]:
        return None
    turned = _COMPARED.match(text)
    if turned:
        text = re.sub(r"[.;].*$", "", turned["rest"]) + f" than {turned['second']}."
        text = text if " than " not in turned["rest"] else ""
    rest = _BEFORE.sub("", text, count=1)
    clauses = [text] if rest == text else [rest, text]
    return next((match for clause in clauses for pattern in (_THAN, _HAS_MORE) if (match := pattern.match(clause))), None)


def _comparison(first: str, second: str, adjective: str, name: str, be: str, sentence: Sentence) -> Candidate:
    # The pair is given in alphabetical order, so that its order does not tell the answer.
    left, right = sorted((first, second), key=str.lower)
    if name:
        questions = (
            f"Which has the {adjective} {name} in {ARTICLE}: {left} or {right}?",
            f"According to {ARTICLE}, which of {left} and {right} has the {adjective} {name}?",
            f"In {ARTICLE}, is the {name} {adjective} for {left} or for {right}?",
        )
        conclusion = f"So {first} has the {adjective} {name}."
    else:
        questions = (
            f"Which {be} {adjective} in {ARTICLE}: {left} or {right}?",
            f"According to {ARTICLE}, which of the two {be} {adjective}, {left} or {right}?",
        )
        conclusion = f"So {first} {be} {adjective}."
    return Candidate("comparison", questions, first, sentence, conclusion, 0.85, (first,))


def cause(passage: Passage) -> list[Candidate]:
    """`X is attributed to Y`, `X arises from Y`."""
    found = []
    for sentence in passage.sentences:
        text = strip_lead(sentence.text)
        match = _CAUSE.match(text) or _ARISES.match(text)
        if match is None:
            continue
        effect, reason = noun_phrase(match["effect"], 11), clip(match["cause"], 16)
        if (
            not effect
            or _cut_short(match["cause"], reason)
            or len(effect.split()) < 2
            or effect.lower() == "the main"
            or "following" in reason
            or len(reason.split()) < 2
            or reason.split()[0].lower() in _VAGUE
        ):
            continue
        effect = inside_sentence(effect, passage.text)
        be = "are" if is_plural(effect) else "is"
        do = "do" if be == "are" else "does"
        verb = match["verb"]
        if verb in ("attributed to", "ascribed to", "explained by", "assigned to"):
            first = (
                f"To what {be} {effect} {verb.split()[0]} in {ARTICLE}?"
                if verb.endswith("to")
                else f"What explains {effect} in {ARTICLE}?"
            )
        else:
            first = f"What causes {effect}, according to {ARTICLE}?"
        questions = (
            first,
            f"In {ARTICLE}, which reason is given for {effect}?",
            f"From what {do} {effect} arise, according to {ARTICLE}?",
        )
        conclusion = f"So the cause is {reason}."
        found.append(Candidate("cause", questions, reason, sentence, conclusion, 0.85, (reason,)))
    return found


def _cut_short(whole: str, clause: str) -> bool:
    """Whether a list was cut before its last member."""
    return "," in clause and whole[len(clause) :].startswith((", and", " and"))


def reason(passage: Passage) -> list[Candidate]:
    """`Statement because of Y`: why is it so?"""
    found = []
    for sentence in passage.sentences:
        text = strip_lead(sentence.text)
        match = _BECAUSE.match(text)
        if match is None or not understandable(sentence, max_words=45) or text.count(" because ") > 1:
            continue
        effect, cause_given = match["effect"].strip(), clip(match["cause"].rstrip("."), 16)
        first = effect.split()[0].lower()
        if (
            first in POINTERS
            or _cut_short(match["cause"], cause_given)
            or not _CLAUSE.search(effect)
            or len(cause_given.split()) < 2
            or re.search(r"\b(?:not|is|are|was)$", effect)
        ):
            continue
        if cause_given.split()[0].lower() in _VAGUE | {"they", "we"} or "due to" in effect:
            continue
        questions = (
            f"Which reason does {ARTICLE} give for this: '{effect}'?",
            f"According to {ARTICLE}, why is it so that '{effect}'?",
            f"In {ARTICLE}, what explains the following? {effect}.",
        )
        conclusion = f"So the reason is {cause_given}."
        found.append(Candidate("cause", questions, cause_given, sentence, conclusion, 0.8, (cause_given,)))
    return found


def consequence(passage: Passage) -> list[Candidate]:
    """`Y leads to X`: what does?"""
    found = []
    for sentence in passage.sentences:
        text = strip_lead(sentence.text)
        match = _LEADS.match(text)
        if match is None or not understandable(sentence, max_words=35):
            continue
        cause_given, effect = noun_phrase(match["cause"], 10), match["effect"].rstrip(".")
        if not cause_given or len(cause_given.split()) < 2 or not noun_phrase(effect, 12):
            continue
        lead = text[match.end("cause") : match.start("effect")].strip()
        verb = "lead to" if lead.startswith("le") else "result in" if lead.startswith("res") else "cause"
        verb = "give rise to" if lead.startswith("g") else verb
        article = lead.split()[-1] if lead.split()[-1] in ("a", "an", "the") else ""
        do = "do" if is_plural(cause_given) else "does"
        cause_given = inside_sentence(cause_given, passage.text)
        answer = f"{article} {effect}".strip()
        questions = (
            f"What {do} {cause_given} {verb}, according to {ARTICLE}?",
            f"Which effect of {cause_given} does {ARTICLE} name?",
            f"In {ARTICLE}, what follows from {cause_given}?",
        )
        conclusion = f"So the effect is {answer}."
        found.append(Candidate("cause", questions, answer, sentence, conclusion, 0.8, (answer, effect)))
    return found
