"""Which candidates become questions: supported, not given away, not asked before, of balanced kinds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from quasitile.reading.asked import Asked
from quasitile.reading.normalise import comparable
from quasitile.reading.questions.candidate import Candidate, name_article
from quasitile.reading.sentences import num_letters

MAX_ANSWER_WORDS = {"definition": 12, "cause": 16, "composition": 14, "comparison": 8, "summary": 40}
MAX_ANSWER_WORDS_OTHERWISE = 10
MAX_QUESTION_CHARACTERS = 500
MAX_EVIDENCE_CHARACTERS = 600
MAX_OF_KIND = {"cloze": 1, "true_false": 1, "choice": 1, "summary": 1}  # facts a section, before the section is short of any
NUM_WITHOUT_SUMMARY = 2  # facts that make a summary unnecessary
_CHOICES = frozenset(("comparison", "true_false", "choice", "expert"))  # the question may name the answer


def supported(candidate: Candidate) -> bool:
    """Whether the answer, or a writing of it that is accepted, stands in the evidence word for word."""
    evidence = f" {comparable(candidate.evidence.text)} "
    return any(f" {text} " in evidence for text in map(comparable, (candidate.answer, *candidate.accepted)) if text)


def given_away(candidate: Candidate, title: str) -> bool:
    """Whether any wording, with the article's title filled in, holds the answer."""
    answer = f" {comparable(candidate.answer)} "
    # Wordings differ around the same words, so that most answers are ruled out by one look.
    questions = [question for question in candidate.questions if answer.split()[0][:3] in name_article(question, title).lower()]
    return any(answer in f" {comparable(name_article(question, title))} " for question in questions)


def _unreadable(question: str) -> bool:
    """Whether a question is hardly one: under three words, or mostly digits and marks."""
    return len(question.split()) < 3 or num_letters(question) < 0.6 * len(question)


def _too_long(candidate: Candidate) -> bool:
    return len(candidate.answer.split()) > MAX_ANSWER_WORDS.get(candidate.kind, MAX_ANSWER_WORDS_OTHERWISE)


# Reason, and whether a candidate (with its article's title) is to be dropped for it. Experts' questions are not judged.
CHECKS: dict[str, Callable[[Candidate, str], bool]] = {
    "empty answer": lambda candidate, title: not comparable(candidate.answer),
    "evidence not in the section": lambda candidate, title: not candidate.evidence.text,
    "unreadable": lambda candidate, title: any(map(_unreadable, candidate.questions)),
    "answer not in evidence": lambda candidate, title: candidate.supported and not supported(candidate),
    "question gives the answer": lambda candidate, title: candidate.kind not in _CHOICES and given_away(candidate, title),
    "answer too long": lambda candidate, title: _too_long(candidate),
    "question too long": lambda candidate, title: max(map(len, candidate.questions)) > MAX_QUESTION_CHARACTERS,
    "evidence too long": lambda candidate, title: len(candidate.evidence.text) > MAX_EVIDENCE_CHARACTERS,
}


def fault(candidate: Candidate, title: str) -> str:
    """The first reason to drop a candidate, or nothing."""
    if candidate.source == "curated":
        return ""
    return next((reason for reason, applies in CHECKS.items() if applies(candidate, title)), "")


def select(
    candidates: list[Candidate], asked: Asked, max_facts: int, chosen: list[Candidate] | None = None
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Choose up to `max_facts` candidates, the best first, kinds that were asked often counting less.

    Args:
        candidates: Candidates without a fault.
        asked: What was asked before; grows by what is chosen.
        max_facts: How many a section may have, experts' questions included; these are never cut.
        chosen: Facts of the section chosen before, which are kept; given, the section is short of facts and
            the limits on kinds do not hold.

    Returns:
        All chosen facts, and the candidates dropped with their reasons.
    """
    filling = chosen is not None
    chosen, dropped, waiting = list(chosen or []), [], list(candidates)
    kinds = Counter(candidate.kind for candidate in chosen)

    def worth(candidate: Candidate) -> float:
        share = asked.kinds[candidate.kind] / max(1, asked.kinds.total())
        return (candidate.kind == "expert") + candidate.quality - 0.15 * kinds[candidate.kind] - 0.4 * share

    while waiting:
        best = max(waiting, key=lambda candidate: (worth(candidate), -candidate.evidence.start))
        waiting.remove(best)
        reason = ""
        if best.kind != "expert":
            if len(chosen) >= max_facts:
                reason = "more than max_facts"
            elif (kinds[best.kind] >= MAX_OF_KIND.get(best.kind, max_facts) and not filling) or (
                best.kind == "summary" and len(chosen) >= NUM_WITHOUT_SUMMARY
            ):
                reason = "kind has its share"
        reason = reason or asked.repeated(best)
        if reason:
            dropped.append((best, reason))
        else:
            chosen.append(best)
            kinds[best.kind] += 1
            asked.add(best)
    return chosen, dropped
