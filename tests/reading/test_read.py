"""The stage as a whole: files, splits, determinism, errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.reading import ReadSettings, read

FILES = ("documents", "sections", "questions", "dropped", "skipped")


def load(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def check_contract(folder: Path) -> None:
    """What must hold of every output."""
    sections = {(row["document"], row["section"]): row for row in load(folder, "sections")}
    documents = {row["document"]: row for row in load(folder, "documents")}
    questions = load(folder, "questions")
    orders: dict[tuple, list[int]] = {}
    wordings: dict[str, list[dict]] = {}
    for row in questions:
        metadata, section = row["metadata"], sections[row["metadata"]["document"], row["metadata"]["section"]]
        evidence = metadata["evidence"]
        assert section["text"][evidence["start"] : evidence["stop"]] == evidence["text"]
        assert metadata["accepted"][0] == row["messages"][1]["content"]
        assert evidence["text"].replace('"', "'") in row["messages"][1]["reasoning_content"] or metadata["source"] == "curated"
        assert "{article}" not in row["messages"][0]["content"]
        document_split = documents[metadata["document"]]["split"]
        assert metadata["split"] in ({"test"} if document_split == "test" else {"train", "phrasing"})
        orders.setdefault((metadata["document"], metadata["section"]), []).append(metadata["order"])
        wordings.setdefault(metadata["fact"], []).append(row)
    assert all(numbers == list(range(len(numbers))) for numbers in orders.values())
    assert len({row["metadata"]["id"] for row in questions}) == len(questions)
    assert list(orders) == [key for key in sections if key in orders], "order of reading"
    trained = {row["messages"][0]["content"] for row in questions if row["metadata"]["split"] == "train"}
    held_out = {row["messages"][0]["content"] for row in questions if row["metadata"]["split"] != "train"}
    assert not trained & held_out
    for rows in wordings.values():
        splits = [row["metadata"]["split"] for row in rows]
        assert splits.count("phrasing") == (0 if splits[0] == "test" or len(rows) < 2 else 1)
    for row in load(folder, "dropped"):
        assert row["metadata"]["reason"]


def test_reading_fulfils_the_contract(papers, tmp_path):
    summary = read(papers, tmp_path / "out")
    check_contract(tmp_path / "out")
    assert summary["num_documents"] == 2
    assert summary["num_sections_without_question"] == 0
    assert {"definition", "acronym", "property", "condition", "comparison", "cause"} <= set(summary["questions_by_kind"])
    assert (
        summary["num_questions"] == summary["num_train"] + summary["num_phrasing"] == len(load(tmp_path / "out", "questions"))
    )
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert [row["dropped_characters"]["references"] for row in load(tmp_path / "out", "documents")] == [20, 11]


def test_the_same_input_gives_the_same_bytes(papers, tmp_path):
    for name in ("one", "two"):
        read(papers, tmp_path / name)
    assert all(
        (tmp_path / "one" / f"{name}.jsonl").read_bytes() == (tmp_path / "two" / f"{name}.jsonl").read_bytes() for name in FILES
    )


def test_another_paper_does_not_change_the_wording_held_out(papers, tmp_path):
    read(papers / "oxides.txt", tmp_path / "one")
    read(papers, tmp_path / "two")
    splits = [
        {row["metadata"]["id"]: row["metadata"]["split"] for row in load(tmp_path / name, "questions")}
        for name in ("one", "two")
    ]
    assert splits[0].items() <= splits[1].items()


@pytest.mark.parametrize("how", ["split.json", "test_documents", "test_share"])
def test_whole_documents_are_held_out(papers, tmp_path, how):
    settings = ReadSettings()
    if how == "split.json":
        (papers / "split.json").write_text('{"test": ["oxides"]}')
    else:
        settings = ReadSettings(test_documents=("oxides",)) if how == "test_documents" else ReadSettings(test_share=0.5)
    summary = read(papers, tmp_path / "out", settings)
    check_contract(tmp_path / "out")
    assert summary["num_test"] > 0
    assert [row["split"] for row in load(tmp_path / "out", "documents")].count("test") == 1


def test_a_broken_file_is_skipped_and_named(papers, tmp_path, capsys):
    from quasitile.progress import set_quiet

    (papers / "broken.xml").write_text("<article><body>")
    (papers / "scan.docx").write_bytes(b"PK")
    (papers / "README.md").write_text("# Not a paper\n\nAt all.")
    set_quiet(False)
    summary = read(papers, tmp_path / "out")
    skipped = load(tmp_path / "out", "skipped")
    assert summary["num_skipped"] == 2
    assert [row["path"] for row in skipped] == ["broken.xml", "scan.docx"]
    assert "broken.xml is not well-formed XML" in " ".join(capsys.readouterr().err.split())


def test_curated_questions_are_placed_or_dropped_with_a_reason(papers, tmp_path):
    row = {"document": "garnets", "section": "Synthesis", "question": "Where does air matter?", "answer": "sintering"}
    evidence = "The pellets were sintered at 1100 °C for 12 h in air."
    write_rows(
        papers / "questions.jsonl",
        {
            **row,
            "evidence": evidence,
            "phrasings": ["Which step needs air?"],
            "trace": "It says so.",
            "accepted": ["the sintering"],
        },
        {
            **row,
            "section": "Introduction",
            "evidence": "The density of LiCoO2 is higher than that of LiFePO4.",
            "question": "Q?",
        },
        {**row, "evidence": "This is not there."},
        {**row, "document": "nobody", "evidence": evidence},
    )
    summary = read(papers, tmp_path / "out")
    check_contract(tmp_path / "out")
    expert = [row for row in load(tmp_path / "out", "questions") if row["metadata"]["source"] == "curated"]
    assert [row["messages"][0]["content"] for row in expert] == ["Where does air matter?", "Which step needs air?", "Q?"]
    assert expert[0]["messages"][1]["reasoning_content"] == "It says so."
    assert expert[0]["metadata"]["accepted"] == ["sintering", "the sintering"]
    assert {row["metadata"]["evidence"]["text"] for row in expert} == {
        evidence,
        "The density of LiCoO2 is higher than that of LiFePO4.",
    }
    assert summary["dropped_by_reason"]["evidence not in the document"] == 1
    assert summary["dropped_by_reason"]["document not found"] == 1


def test_a_part_of_a_latex_paper_is_not_a_paper(papers, tmp_path):
    (papers / "main.tex").write_text(r"\begin{document}\section{A} Iron is a metal that rusts. \input{part}\end{document}")
    (papers / "part.tex").write_text("Gold is a metal that does not rust.")
    assert read(papers, tmp_path / "out")["num_documents"] == 3


def test_documents_of_one_name_are_told_apart(papers, tmp_path):
    (papers / "more").mkdir()
    (papers / "more" / "garnets.md").write_text(
        "# Other\n\nGarnets are minerals that contain silicon and oxygen in tetrahedra."
    )
    read(papers, tmp_path / "out")
    assert [row["document"] for row in load(tmp_path / "out", "documents")] == ["garnets", "more/garnets", "oxides"]


def test_rows_of_another_kind_are_left_out(tmp_path):
    rows = [
        {"doc_id": kind, "kind": kind, "sections": [{"title": "A", "text": "Iron is a metal that rusts."}]}
        for kind in ("article", "lecture")
    ]
    write_rows(tmp_path / "rows.jsonl", *rows)
    assert read(tmp_path / "rows.jsonl", tmp_path / "out", ReadSettings(kind="lecture"))["num_documents"] == 1


@pytest.mark.parametrize(
    ("prepare", "settings", "message"),
    [
        (lambda papers: [path.unlink() for path in papers.iterdir()], {}, "holds no paper"),
        (lambda papers: [path.write_text("") for path in papers.iterdir()], {}, "no readable document"),
        (lambda papers: None, {"kind": "poem"}, "of kind 'poem'"),
        (lambda papers: None, {"test_documents": ("garnets", "oxides")}, "no document for training"),
        (lambda papers: None, {"test_documents": ("granets",)}, "'granets', which is not a document"),
        (lambda papers: (papers / "split.json").write_text("[]"), {}, "split.json must be"),
        (
            lambda papers: (papers / "questions.jsonl").write_text('{"document": "garnets"}'),
            {},
            'row 1 has no text in "question"',
        ),
        (lambda papers: (papers / "questions.jsonl").write_text("{"), {}, "questions.jsonl:1 is not valid JSON"),
    ],
)
def test_errors_are_one_line(papers, tmp_path, prepare, settings, message):
    prepare(papers)
    with pytest.raises(InputError, match=message) as error:
        read(papers, tmp_path / "out", ReadSettings(**settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        read(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    "settings", [{"rules": ("riddle",)}, {"min_facts": 6}, {"min_section_characters": 2000}, {"test_share": 1.0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ReadSettings(**settings)


@pytest.mark.skipif("QUASITILE_DATA" not in os.environ, reason="QUASITILE_DATA names no folder of development data")
def test_real_articles(tmp_path):
    source = sorted(Path(os.environ["QUASITILE_DATA"], "jats").glob("*.xml"))[:3]
    papers = tmp_path / "papers"
    papers.mkdir()
    for path in source:
        (papers / path.name).write_bytes(path.read_bytes())
    summary = read(papers, tmp_path / "out")
    check_contract(tmp_path / "out")
    assert summary["num_sections_without_question"] == 0
    assert summary["num_skipped"] == 0


def test_files_are_chosen_and_held_out_by_pattern(tmp_path):
    text = "# {0}\n\n## Results\n\n{0} is a ceramic that carries ions at high temperature. The band gap of {0} is 5.0 eV.\n"
    (tmp_path / "papers").mkdir()
    for name in ("train-zirconia", "test-ceria", "valid-titania"):
        (tmp_path / "papers" / f"{name}.md").write_text(text.format(name[-7:].strip("-").capitalize()))
    settings = ReadSettings(files=("train*", "test*"), test_files=("test*",))
    read(tmp_path / "papers", tmp_path / "out", settings)
    splits = {row["document"]: row["split"] for row in read_jsonl(tmp_path / "out" / "documents.jsonl")}
    assert splits == {"train-zirconia": "train", "test-ceria": "test"}
