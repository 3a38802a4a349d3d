"""From papers to sections and questions: the stage `read`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from quasitile.folders import stage_folder
from quasitile.progress import track
from quasitile.reading.asked import Asked
from quasitile.reading.dataset import document_row, held_out_documents, question_rows, record, section_row
from quasitile.reading.discover import matches, read_documents
from quasitile.reading.documents import Document, Section
from quasitile.reading.output import Output
from quasitile.reading.quality import fault, select
from quasitile.reading.questions import FALLBACK_RULES, RULES, Candidate, Passage
from quasitile.reading.questions.client import Client
from quasitile.reading.questions.curated import CURATED_FILES, Curated, locate, read_curated
from quasitile.reading.questions.model import Writer, usage_of
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
    with stage_folder(out, "read", settings, seed=settings.seed, papers=papers) as stage, ExitStack() as cleanup:
        started = time.monotonic()
        documents, skipped = read_documents(papers, settings.kind, settings.files)
        cleanup.callback(documents.close)
        test = {name for name, path in zip(documents.names, documents.paths, strict=True) if matches(path, settings.test_files)}
        test |= held_out_documents(papers, documents.names, [Path(row["path"]).stem for row in skipped], settings)
        curated, unknown = _curated(papers, set(documents.names))
        num_asked, asked, writer = 0, Asked(), None
        if settings.model.wanted:
            journal = Path(out).parent / f"{Path(out).name}.answers.jsonl"
            writer = Writer(Client(settings.model, journal))
        cleanup.callback(asked.close)
        with Output(stage.path) as output:
            for row in skipped:
                output.write("skipped", row)
            for row in unknown:
                output.write("dropped", row)
            loose, placed = curated.pop("", []), set[str]()
            for document in track(documents, "asking questions", len(documents)):
                asked.begin(document.name)
                experts = [*curated.get(document.name, []), *(row for row in loose if row.candidate.questions[0] not in placed)]
                rows = _read_document(document, experts, document.name in test, asked, settings, writer)
                num_asked += len({row["metadata"]["section"] for row in rows["questions"]})
                placed |= {row["messages"][0]["content"] for row in rows["questions"] if row["metadata"]["source"] == "curated"}
                for name, added in rows.items():
                    for row in added:
                        output.write(name, row)
            for row in loose:
                if row.candidate.questions[0] not in placed:
                    output.write("dropped", unplaced(row, "evidence not in any document"))
        stage.summary = output.summary(num_asked, time.monotonic() - started) | usage_of(writer, settings.model)
        return stage.summary


def _curated(papers: Path, names: set[str]) -> tuple[dict[str, list[Curated]], list[dict[str, Any]]]:
    """Experts' questions by document, and the records of those whose document is not there."""
    folder = papers if papers.is_dir() else papers.parent
    paths = [path for name in CURATED_FILES for path in (sorted(papers.rglob(name)) if papers.is_dir() else [folder / name])]
    by_document: dict[str, list[Curated]] = {}
    unknown = []
    for path in (path for path in paths if path.is_file()):
        for number, row in enumerate(read_curated(path)):
            if not row.document or row.document in names:
                by_document.setdefault(row.document, []).append(row)
            elif papers.is_dir():
                unknown.append(unplaced(row, "document not found", number))
    return by_document, unknown


def unplaced(row: Curated, reason: str, number: int = 0) -> dict[str, Any]:
    """The record of an expert's question that has no section."""
    entry = record(
        row.candidate, Document(row.document, "", "", row.document), None, None, f"{row.document}/f{number}", 0, number, ""
    )
    entry["metadata"]["reason"] = reason
    return entry


def _read_document(
    document: Document, curated: list[Curated], test: bool, asked: Asked, settings: ReadSettings, writer: Writer | None
) -> dict[str, list[dict[str, Any]]]:
    """All rows of one document."""
    split = "test" if test else "train"
    sections = shape_sections(document.sections, settings.min_section_characters, settings.max_section_characters)
    tables: dict[str, list[dict[str, Any]]] = {"documents": [], "sections": [], "questions": [], "dropped": []}
    tables["documents"].append(document_row(document, len(sections), document.kept_characters, split))
    expert: dict[int, list[Candidate]] = {}
    for number, row in enumerate(curated):
        place = locate(row, sections)
        if place is None and not row.document:
            continue  # of no document by name: it may stand in another
        if place is None:
            entry = record(row.candidate, document, None, None, f"{document.name}/x{number}", 0, number, split)
            entry["metadata"]["reason"] = "evidence not in the document"
            tables["dropped"].append(entry)
        else:
            index, start = place
            evidence = Sentence(row.evidence, start, start + len(row.evidence))
            expert.setdefault(index, []).append(replace(row.candidate, evidence=evidence))
    start = 0
    written = writer.write(sections, document.title) if writer else repeat([])
    for (index, section), model in zip(enumerate(sections), written, strict=False):
        facts, dropped = ask(section, document, [*expert.get(index, []), *model], asked, settings)
        tables["sections"].append(section_row(document, index, section, start, split))
        start += len(section.text) + 2
        tables["questions"] += question_rows(facts, document, index, section, test, settings)
        for number, (candidate, reason) in enumerate(dropped):
            entry = record(candidate, document, index, section, f"{document.name}/{index}/d{number}", 0, number, split)
            entry["metadata"]["reason"] = reason
            tables["dropped"].append(entry)
    return tables


def ask(
    section: Section, document: Document, given: list[Candidate], asked: Asked, settings: ReadSettings
) -> tuple[list[Candidate], Dropped]:
    """The facts of one section, and what was dropped with its reason; where facts are short, fallback rules fill up."""
    passage = Passage(document.title, section.title, section.type, section.text)
    candidates = [*given, *(candidate for rule in settings.rules for candidate in RULES[rule](passage))]
    sound, dropped = _sift(candidates, document)
    chosen, rest = select(sound, asked, settings.max_facts)
    dropped += rest
    if len(chosen) < settings.min_facts:
        spare, faulty = _sift([candidate for rule in FALLBACK_RULES.values() for candidate in rule(passage)], document)
        chosen, rest = select(spare, asked, settings.min_facts, chosen)
        dropped += faulty + rest
    return chosen, dropped


def _sift(candidates: list[Candidate], document: Document) -> tuple[list[Candidate], Dropped]:
    faults = [(candidate, fault(candidate, document.title)) for candidate in candidates]
    return [candidate for candidate, reason in faults if not reason], [pair for pair in faults if pair[1]]
