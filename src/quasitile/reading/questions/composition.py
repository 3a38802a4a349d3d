"""Rule on what something consists of."""

from __future__ import annotations

import re

from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.phrases import clip, inside_sentence, noun_phrase, strip_lead, without_article

_VAGUE_PARTS = frozenset(("it", "this", "both", "only", "more", "less", "several", "many"))
_CONSISTS = re.compile(
    r"^(?P<subject>[^,;]{3,70}?) (?P<verb>consists? of|consisted of|(?:is|are|was|were) composed of|comprises?|"
    r"comprised|contains?|contained|"
    r"(?:is|are|was|were) doped with) (?P<parts>.+)$"
)


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
