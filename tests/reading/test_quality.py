"""Filters by reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quasitile.reading.asked import Asked
from quasitile.reading.quality import CHECKS, MAX_EVIDENCE_CHARACTERS, MAX_QUESTION_CHARACTERS, fault, select
from quasitile.reading.questions import Candidate
from quasitile.reading.sentences import Sentence

EVIDENCE = Sentence("The band gap of CsPbI3 is 1.73 eV.", 0, 34)
GOOD = Candidate(
    "property", ("What is the band gap of CsPbI3?", "How large is the gap?"), "1.73 eV", EVIDENCE, "So it is 1.73 eV.", 0.9
)

FAULTY = {
    "empty answer": replace(GOOD, answer="..."),
    "evidence not in the section": replace(GOOD, evidence=Sentence("", 0, 0)),
    "unreadable": replace(GOOD, questions=("Gap?",)),
    "answer not in evidence": replace(GOOD, answer="2.3 eV"),
    "question gives the answer": replace(GOOD, questions=("Is the gap of CsPbI3 the value 1.73 eV?",)),
    "answer too long": replace(GOOD, answer="word " * 11, supported=False),
    "question too long": replace(GOOD, questions=("word " * MAX_QUESTION_CHARACTERS,)),
    "evidence too long": replace(GOOD, evidence=Sentence(EVIDENCE.text + "x" * MAX_EVIDENCE_CHARACTERS, 0, 0)),
}


def test_a_good_question_has_no_fault():
    assert fault(GOOD, "A title") == ""


@pytest.mark.parametrize("reason", CHECKS)
def test_each_fault_is_found(reason):
    assert fault(FAULTY[reason], "A title") == reason


def test_the_title_may_give_the_answer_away():
    named = replace(GOOD, questions=("In {article}, what is the gap?",))
    assert fault(named, "A gap of 1.73 eV in CsPbI3") == "question gives the answer"


def test_an_accepted_writing_supports_the_answer():
    assert fault(replace(GOOD, answer="1.73 electronvolts", accepted=("1.73 eV",)), "") == ""


def test_experts_are_not_judged():
    assert fault(replace(FAULTY["answer not in evidence"], source="curated"), "") == ""


@pytest.fixture
def asked():
    """Nothing asked yet."""
    empty = Asked()
    yield empty
    empty.close()


@pytest.mark.parametrize(
    ("second", "document", "reason"),
    [
        (GOOD, "a", "near-duplicate"),
        (GOOD, "b", "near-duplicate"),
        (replace(GOOD, answer="9 eV"), "b", "contradicts an earlier question"),
        (
            replace(GOOD, questions=("What is the band gap of the CsPbI3 film?",), evidence=Sentence("Other 1.73 eV.", 0, 14)),
            "a",
            "near-duplicate",
        ),
        (replace(GOOD, questions=("Fill in: ____",), kind="cloze"), "a", "same fact asked already"),
        (replace(GOOD, questions=("What is the density of iron?",), evidence=Sentence("Iron 1.73 eV.", 0, 13)), "a", ""),
    ],
)
def test_repetition_within_and_across_documents(asked, second, document, reason):
    asked.begin("a")
    asked.add(GOOD)
    if document != "a":
        asked.begin(document)
    assert asked.repeated(second) == reason


def test_the_same_question_on_two_articles_is_two_questions(asked):
    scoped = replace(GOOD, questions=("At what temperature was it annealed in {article}?",))
    asked.begin("a")
    asked.add(scoped)
    asked.begin("b")
    assert asked.repeated(replace(scoped, answer="9", evidence=Sentence("x 9", 0, 3))) == ""


def test_a_sentence_copied_with_small_changes_into_another_document_is_noticed(asked):
    text = "The pellets of the garnet were sintered for many hours at 1100 °C in a box furnace under flowing oxygen gas {}."
    asked.begin("a")
    asked.add(replace(GOOD, kind="cloze", questions=("A ____ in {article}",), evidence=Sentence(text.format("here"), 0, 9)))
    asked.begin("b")
    copy = replace(GOOD, kind="cloze", questions=("B ____ in {article}",), evidence=Sentence(text.format("there"), 0, 9))
    assert asked.repeated(copy) == "near-duplicate in another document"
    assert asked.repeated(replace(copy, answer="another")) == ""


def test_selection_keeps_experts_and_counts_the_rest(asked):
    questions = [f"What is property {word}?" for word in ("alpha", "beta", "gamma", "delta", "omega", "kappa")]
    rules = [
        replace(GOOD, questions=(question,), answer=str(n), evidence=Sentence(f"s {n}", n, n + 3))
        for n, question in enumerate(questions)
    ]
    experts = [
        replace(candidate, source="curated", kind="expert", questions=(f"{candidate.questions[0]} Why?",))
        for candidate in rules[:3]
    ]
    chosen, dropped = select([*rules, *experts], asked, 4)
    assert [candidate.source for candidate in chosen] == ["curated"] * 3 + ["rules"]
    assert len(chosen) + len(dropped) == 9
    assert {reason for _, reason in dropped} <= {"more than max_facts", "near-duplicate", "same fact asked already"}


def test_kinds_are_balanced(asked):
    clozes = [
        replace(GOOD, kind="cloze", questions=(f"Blank {word}",), answer=word, evidence=Sentence(word, n, n + 1))
        for n, word in enumerate("pqrst")
    ]
    chosen, dropped = select(clozes, asked, 5)
    assert len(chosen) == 1
    assert {reason for _, reason in dropped} == {"kind has its share"}
