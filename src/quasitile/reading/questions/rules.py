"""The rules by name: each is a function from a passage to candidates. Add a rule by adding a line."""

from __future__ import annotations

from collections.abc import Callable

from quasitile.reading.questions.candidate import Candidate, Passage
from quasitile.reading.questions.choices import choice
from quasitile.reading.questions.composition import composition
from quasitile.reading.questions.conditions import condition
from quasitile.reading.questions.properties import property_value
from quasitile.reading.questions.relations import cause, comparison, consequence, reason
from quasitile.reading.questions.terms import acronym, definition
from quasitile.reading.questions.whole_sentences import any_cloze, any_summary, cloze, summary, true_false

Rule = Callable[[Passage], list[Candidate]]

RULES: dict[str, Rule] = {
    "definition": definition,
    "acronym": acronym,
    "property": property_value,
    "condition": condition,
    "composition": composition,
    "comparison": comparison,
    "cause": cause,
    "reason": reason,
    "consequence": consequence,
    "cloze": cloze,
    "true_false": true_false,
    "choice": choice,
    "summary": summary,
}

# For sections where the rules find fewer facts than wanted, so that none is left out.
FALLBACK_RULES: dict[str, Rule] = {"cloze": any_cloze, "summary": any_summary}
