"""From papers to sections and questions: the stage `read`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import stage_folder, write_jsonl
from quasitile.progress import track
from quasitile.reading.dataset import document_row, held_out_documents, question_rows, record, section_row
from quasitile.reading.discover import matches, read_documents
from quasitile.reading.documents import Document, Section
from quasitile.reading.quality import Asked, fault, select
from quasitile.reading.questions import FALLBACK_RULES, RULES, Candidate, Passage
from quasitile.reading.questions.curated import Curated, locate, read_curated
from quasitile.reading.sections import shape_sections
from quasitile.reading.sentences import Sentence
from quasitile.reading.settings import ReadSettings

Dropped = list[tuple[Candidate, str]]


def read(papers: str | Path, out: str | Path, settings: ReadSettings | None = None) -> dict[str, Any]:
    """Read papers into sections and questions (docs/data.md, `reading/`).

    Args:
        papers: A folder, searched with those below it, or one file.
        out: The folder to write.
        settings: Defaults where absent.

    Returns:
        The summary that is written to `summary.json`.

    Raises:
        InputError: Nothing readable, nothing left to train on, or a curated file with a bad row.
    """
    papers, settings = Path(papers), settings or ReadSettings()
    with stage_folder(out, "read", settings, seed=settings.seed, papers=papers) as stage:
        started = time.monotonic()
        documents, skipped = read_documents(papers, settings.kind, settings.files)
        names = [document.name for document in documents]
        test = {document.name for document in documents if matches(document.path, settings.test_files)}
        test |= held_out_documents(papers, names, [Path(row["path"]).stem for row in skipped], settings)
        curated, unknown = _curated(papers, set(names))
        tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("documents", "sections", "questions", "dropped")}
        tables["dropped"] += unknown
        asked = Asked()
        for document in track(documents, "asking questions"):
            rows = _read_document(document, curated.get(document.name, []), document.name in test, asked, settings)
            for name, added in rows.items():
                tables[name] += added
        for name, rows in {**tables, "skipped": skipped}.items():
            write_jsonl(stage.path / f"{name}.jsonl", rows)
        stage.summary = summarise(tables, len(skipped), time.monotonic() - started)
        return stage.summary


def _curated(papers: Path, names: set[str]) -> tuple[dict[str, list[Curated]], list[dict[str, Any]]]:
    """Experts' questions by document, and the records of those whose document is not there."""
    paths = sorted(papers.rglob("questions.jsonl")) if papers.is_dir() else [papers.parent / "questions.jsonl"]
    by_document: dict[str, list[Curated]] = {}
    unknown = []
    for path in (path for path in paths if path.is_file()):
        for number, row in enumerate(read_curated(path)):
            if row.document in names:
                by_document.setdefault(row.document, []).append(row)
            elif papers.is_dir():
                missing = Document(row.document, "", "", row.document)
                entry = record(row.candidate, missing, None, None, f"{row.document}/f{number}", 0, number, "")
                entry["metadata"]["reason"] = "document not found"
                unknown.append(entry)
    return by_document, unknown


def _read_document(
    document: Document, curated: list[Curated], test: bool, asked: Asked, settings: ReadSettings
) -> dict[str, list[dict[str, Any]]]:
    """All rows of one document."""
    split = "test" if test else "train"
    sections = shape_sections(document.sections, settings.min_section_characters, settings.max_section_characters)
    tables: dict[str, list[dict[str, Any]]] = {"documents": [], "sections": [], "questions": [], "dropped": []}
    tables["documents"].append(document_row(document, len(sections), document.kept_characters, split))
    expert: dict[int, list[Candidate]] = {}
    for number, row in enumerate(curated):
        place = locate(row, sections)
        if place is None:
            entry = record(row.candidate, document, None, None, f"{document.name}/x{number}", 0, number, split)
            entry["metadata"]["reason"] = "evidence not in the document"
            tables["dropped"].append(entry)
        else:
            index, start = place
            evidence = Sentence(row.evidence, start, start + len(row.evidence))
            expert.setdefault(index, []).append(replace(row.candidate, evidence=evidence))
    for index, section in enumerate(sections):
        facts, dropped = ask(section, document, expert.get(index, []), asked, settings)
        tables["sections"].append(section_row(document, index, section, split))
        tables["questions"] += question_rows(facts, document, index, section, test, settings)
        for number, (candidate, reason) in enumerate(dropped):
            entry = record(candidate, document, index, section, f"{document.name}/{index}/d{number}", 0, number, split)
            entry["metadata"]["reason"] = reason
            tables["dropped"].append(entry)
    return tables


def ask(
    section: Section, document: Document, expert: list[Candidate], asked: Asked, settings: ReadSettings
) -> tuple[list[Candidate], Dropped]:
    """The facts of one section, and what was dropped with its reason; where facts are short, fallback rules fill up."""
    passage = Passage(document.title, section.title, section.type, section.text)
    candidates = [*expert, *(candidate for rule in settings.rules for candidate in RULES[rule](passage))]
    sound, dropped = _sift(candidates, document)
    chosen, rest = select(sound, asked, document.name, settings.max_facts)
    dropped += rest
    if len(chosen) < settings.min_facts:
        spare, faulty = _sift([candidate for rule in FALLBACK_RULES.values() for candidate in rule(passage)], document)
        chosen, rest = select(spare, asked, document.name, settings.min_facts, chosen)
        dropped += faulty + rest
    return chosen, dropped


def _sift(candidates: list[Candidate], document: Document) -> tuple[list[Candidate], Dropped]:
    faults = [(candidate, fault(candidate, document.title)) for candidate in candidates]
    return [candidate for candidate, reason in faults if not reason], [pair for pair in faults if pair[1]]


def summarise(tables: dict[str, list[dict[str, Any]]], num_skipped: int, seconds: float) -> dict[str, Any]:
    """Counts of everything read, kept and dropped.

    Raises:
        InputError: No section holds a text of which a question can be asked.
    """
    questions = [row["metadata"] for row in tables["questions"]]
    if not any(row["split"] == "train" for row in questions):
        raise InputError("no question could be asked on the documents for training; give papers with running text")
    splits = Counter(row["split"] for row in questions)
    asked_sections = {(row["document"], row["section"]) for row in questions}
    num_characters = sum(row["num_characters"] for row in tables["documents"])
    kept_characters = sum(row["kept_characters"] for row in tables["documents"])
    return {
        "num_documents": len(tables["documents"]),
        "num_skipped": num_skipped,
        "num_sections": len(tables["sections"]),
        "num_sections_without_question": len(tables["sections"]) - len(asked_sections),
        "num_questions": len(questions),
        "num_facts": len({row["fact"] for row in questions}),
        "num_dropped": len(tables["dropped"]),
        "dropped_by_reason": dict(Counter(row["metadata"]["reason"] for row in tables["dropped"]).most_common()),
        "questions_by_kind": dict(Counter(row["kind"] for row in questions).most_common()),
        "questions_by_source": dict(Counter(row["source"] for row in questions).most_common()),
        "num_train": splits["train"],
        "num_phrasing": splits["phrasing"],
        "num_test": splits["test"],
        "num_characters": num_characters,
        "kept_characters": kept_characters,
        "kept_share": round(kept_characters / max(1, num_characters), 4),
        "seconds": round(seconds, 3),
        "seconds_per_section": round(seconds / max(1, len(tables["sections"])), 6),
    }
