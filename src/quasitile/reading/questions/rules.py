"""The rules by name: each is a function from a passage to candidates. Add a rule by adding a line."""

from __future__ import annotations

from collections.abc import Callable

from quasitile.reading.questions.candidate import Candidate, Passage
from quasitile.reading.questions.conditions import condition
from quasitile.reading.questions.facts import composition, property_value
from quasitile.reading.questions.relations import cause, comparison
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
    "cloze": cloze,
    "true_false": true_false,
    "summary": summary,
}

# For sections where the rules find fewer facts than wanted, so that none is left out.
FALLBACK_RULES: dict[str, Rule] = {"cloze": any_cloze, "summary": any_summary}
