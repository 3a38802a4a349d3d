"""Experts' questions in every form that is read: merged with the rest, kept when read again, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.reading import ReadSettings, read
from quasitile.reading.questions.curated import CURATED_FILES

QUESTION, ANSWER = "Which part of a cell does the interphase guard?", "the anode"
EVIDENCE = "The solid electrolyte interphase (SEI) protects the anode."
SECOND = "Where were the pellets held hot?"

CSV = f"""document,section,question,answer,evidence,accepted,phrasings
garnets,Introduction,{QUESTION},{ANSWER},{EVIDENCE},anode|anode side,What is guarded by the interphase?
,,{SECOND},in air,The pellets were sintered at 1100 °C for 12 h in air.,,
"""
JSONL = "".join(
    json.dumps(row) + "\n"
    for row in (
        {
            "document": "garnets",
            "question": QUESTION,
            "answer": ANSWER,
            "evidence": EVIDENCE,
            "accepted": ["anode", "anode side"],
            "phrasings": ["What is guarded by the interphase?"],
        },
        {"question": SECOND, "answer": "in air", "evidence": "The pellets were sintered at 1100 °C for 12 h in air."},
    )
)
YAML = f"""- document: garnets
  question: {QUESTION}
  answer: {ANSWER}
  evidence: {EVIDENCE}
  accepted: [anode, anode side]
  phrasings: ["What is guarded by the interphase?"]
- question: {SECOND}
  answer: in air
  evidence: The pellets were sintered at 1100 °C for 12 h in air.
"""
QNA = f"""version: 3
domain: materials
created_by: someone
seed_examples:
  - context: |
      {EVIDENCE}
    questions_and_answers:
      - question: {QUESTION}
        answer: {ANSWER}
      - question: What does the interphase do to the anode?
        answer: it protects it
  - context: The pellets were sintered at 1100 °C for 12 h in air.
    questions_and_answers:
      - question: {SECOND}
        answer: in air
document_outline: garnets
"""
FORMS = {
    "questions.csv": CSV, "questions.jsonl": JSONL, "questions.yaml": YAML, "questions.yml": YAML,
    "qna.yaml": QNA, "qna.yml": QNA,
}  # fmt: skip


def curated(folder: Path) -> list[dict]:
    return [row for row in read_jsonl(folder / "questions.jsonl") if row["metadata"]["source"] == "curated"]


def test_every_form_is_tried():
    assert set(FORMS) == set(CURATED_FILES)


@pytest.mark.parametrize("name", FORMS)
def test_experts_questions_are_merged_and_kept_when_read_again(papers, tmp_path, name):
    (papers / name).write_text(FORMS[name], encoding="utf-8")
    settings = ReadSettings(hold_out_phrasings=False)
    without = {row["messages"][0]["content"] for row in read_jsonl(_read(papers, tmp_path / "rules", settings, name))}
    for out in ("out", "out"):  # the second time into the same folder
        summary = read(papers, tmp_path / out, settings)
        rows = curated(tmp_path / out)
        asked = {row["messages"][0]["content"]: row for row in rows}
        assert {QUESTION, SECOND} <= set(asked)
        assert asked[QUESTION]["messages"][1]["content"] == ANSWER
        assert asked[QUESTION]["metadata"]["evidence"]["text"] == EVIDENCE
        assert asked[QUESTION]["metadata"]["document"] == asked[SECOND]["metadata"]["document"] == "garnets"
        assert summary["questions_by_source"] == {"curated": len(rows), "rules": summary["questions_by_source"]["rules"]}
        if not name.startswith("qna"):
            assert asked[QUESTION]["metadata"]["accepted"] == [ANSWER, "anode", "anode side"]
            assert "What is guarded by the interphase?" in asked
    assert (papers / name).read_text(encoding="utf-8") == FORMS[name], "the expert's file is not written to"
    made = {row["messages"][0]["content"] for row in read_jsonl(tmp_path / "out" / "questions.jsonl")} - set(asked)
    assert made <= without, "experts' questions take a place and add none"


def _read(papers: Path, out: Path, settings: ReadSettings, name: str) -> Path:
    """The same papers without the expert's file, which is set aside meanwhile."""
    text = (papers / name).read_text(encoding="utf-8")
    (papers / name).unlink()
    read(papers, out, settings)
    (papers / name).write_text(text, encoding="utf-8")
    return out / "questions.jsonl"


def test_files_of_several_forms_stand_side_by_side(papers, tmp_path):
    (papers / "questions.csv").write_text(CSV, encoding="utf-8")
    (papers / "qna.yaml").write_text(QNA.replace(QUESTION, "What is guarded in a cell?"), encoding="utf-8")
    read(papers, tmp_path / "out")
    asked = {row["messages"][0]["content"] for row in curated(tmp_path / "out")}
    assert {QUESTION, "What is guarded in a cell?", SECOND} <= asked


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("questions.csv", "question,answer\nWhy?,So.\n", 'row 1 has no text in "evidence"'),
        ("questions.csv", "question;answer;evidence\nWhy?;So.;It is.\n", 'row 1 has no text in "question"'),
        ("questions.csv", "", "questions.csv is empty"),
        ("questions.jsonl", '{"question": 1}\n', 'row 1 has no text in "question"'),
        ("questions.jsonl", JSONL + "{\n", "questions.jsonl:3 is not valid JSON"),
        (
            "questions.jsonl",
            '{"question": "a", "answer": "b", "evidence": "c", "accepted": "d"}\n',
            'list of texts in "accepted"',
        ),
        ("questions.yaml", "- question: [\n", "not valid YAML"),
        ("questions.yaml", "just words", "neither a list of questions nor"),
        ("questions.yaml", "- 1\n- 2\n", "neither a list of questions nor"),
        ("qna.yaml", "seed_examples:\n  - questions_and_answers: []\n", "example without a context"),
        ("qna.yaml", "seed_examples:\n  - context: a\n    questions_and_answers: b\n", "no list of questions and answers"),
        (
            "qna.yaml",
            "seed_examples:\n  - context: a\n    questions_and_answers:\n      - question: b\n",
            'no text in "answer"',
        ),
        ("questions.yaml", "- &a [*a]\n", "neither a list|not valid YAML"),
    ],
)
def test_malformed_files_give_one_clear_line(papers, tmp_path, name, text, message):
    (papers / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read(papers, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert name in str(error.value)
    assert not (tmp_path / "out").exists()
