"""A short reasoning trace by rule: the evidence, what was read in it, the answer."""

from __future__ import annotations

from quasitile.reading.questions.candidate import Candidate


def trace(candidate: Candidate) -> str:
    """The expert's own trace, otherwise the sentence cited whole and the conclusion from it."""
    if candidate.trace:
        return candidate.trace
    quoted = candidate.evidence.text.replace('"', "'")
    return f'The text says: "{quoted}" {candidate.conclusion}'
