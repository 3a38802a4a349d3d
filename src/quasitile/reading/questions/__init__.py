"""Questions on a section: by rules, and by experts."""

from quasitile.reading.questions.candidate import Candidate, Passage
from quasitile.reading.questions.rules import FALLBACK_RULES, RULES

__all__ = ["FALLBACK_RULES", "RULES", "Candidate", "Passage"]
