"""Records and splits: what is written, and what may be trained on."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_json
from quasitile.reading.documents.document import Document, Section
from quasitile.reading.questions.candidate import Candidate, name_article
from quasitile.reading.settings import ReadSettings
from quasitile.reading.traces import trace


def held_out_documents(papers: Path, names: list[str], skipped: list[str], settings: ReadSettings) -> set[str]:
    """The documents of the test split: named in `split.json` or the settings, or drawn with the seed.

    Raises:
        InputError: A name is not that of a document, `split.json` has another form, or no document
            is left for training.
    """
    named = {name: "test_documents" for name in settings.test_documents}
    folder = papers if papers.is_dir() else papers.parent
    for path in sorted(folder.rglob("split.json")) if papers.is_dir() else [folder / "split.json"]:
        if path.is_file():
            split = read_json(path)
            test = split.get("test") if isinstance(split, dict) else None
            if not isinstance(test, list) or not all(isinstance(name, str) for name in test):
                raise InputError(f'{path} must be {{"test": ["name of a document", ...]}}; mend it')
            # One file beside a single paper speaks of its neighbours as well.
            named.update({name: str(path) for name in test if papers.is_dir() or name in names})
    missing = set(skipped)
    for name, where in named.items():
        if name not in names and name not in missing:
            raise InputError(f"{where} names {name!r}, which is not a document; known are {', '.join(names[:8])}")
    test = {name for name in named if name in names}
    if settings.test_share > 0:
        rest = [name for name in names if name not in test]
        num_drawn = max(1, round(settings.test_share * len(names))) - len(test)
        test |= set(Random(settings.seed).sample(rest, max(0, min(num_drawn, len(rest)))))
    if len(test) >= len(names):
        raise InputError(
            f"{papers} leaves no document for training: all {len(names)} are held out; add papers or hold out fewer"
        )
    return test


def document_row(document: Document, num_sections: int, kept_characters: int, split: str) -> dict[str, Any]:
    """A line of documents.jsonl; `kept_characters` counts the text as it stands in sections.jsonl."""
    dropped = dict(sorted(document.dropped_characters.items()))
    return {
        "document": document.name,
        "path": document.path,
        "format": document.format,
        "title": document.title,
        "licence": document.licence,
        "split": split,
        "num_sections": num_sections,
        "num_characters": document.num_characters,
        "kept_characters": kept_characters,
        "dropped_characters": dropped,
    }


def section_row(document: Document, index: int, section: Section, start: int, split: str) -> dict[str, Any]:
    """A line of sections.jsonl; `start` counts in the document's text, its sections with a blank line between them."""
    return {
        "document": document.name,
        "section": index,
        "title": section.title,
        "level": section.level,
        "type": section.type,
        "path": list(section.path),
        "start": start,
        "text": section.text,
        "split": split,
    }


def question_rows(
    facts: list[Candidate], document: Document, index: int, section: Section, test: bool, settings: ReadSettings
) -> list[dict[str, Any]]:
    """The lines of questions.jsonl for one section: its facts in the order of their evidence, each in all its wordings."""
    rows: list[dict[str, Any]] = []
    for number, fact in enumerate(sorted(facts, key=lambda fact: (fact.evidence.start, -fact.quality, fact.questions))):
        name = f"{document.name}/{index}/f{number}"
        questions = fact.questions[: settings.max_phrasings]
        held_out = _draw(settings.seed, name, len(questions)) if settings.hold_out_phrasings and len(questions) > 1 else -1
        for phrasing in range(len(questions)):
            split = "test" if test else "phrasing" if phrasing == held_out else "train"
            rows.append(record(fact, document, index, section, name, phrasing, len(rows), split))
    return rows


def record(
    fact: Candidate,
    document: Document,
    index: int | None,
    section: Section | None,
    name: str,
    phrasing: int,
    order: int,
    split: str,
) -> dict[str, Any]:
    """One question in one wording. Without a section (an expert's evidence that was not found) offsets are absent."""
    placed = section is not None
    return {
        "messages": [
            {"role": "user", "content": name_article(fact.questions[phrasing], document.title)},
            {"role": "assistant", "content": fact.answer, "reasoning_content": trace(fact)},
        ],
        "metadata": {
            "id": f"{document.name}/{index}/{order}",
            "document": document.name,
            "section": index,
            "section_title": section.title if section else "",
            "type": section.type if section else "",
            "order": order,
            "kind": fact.kind,
            "source": fact.source,
            "fact": name,
            "phrasing": phrasing,
            "evidence": {
                "text": fact.evidence.text,
                "start": fact.evidence.start if placed else None,
                "stop": fact.evidence.stop if placed else None,
            },
            **({"choices": list(fact.choices)} if fact.choices else {}),
            "accepted": list(dict.fromkeys((fact.answer, *fact.accepted))),
            "quality": round(fact.quality, 2),
            "split": split,
            "licence": document.licence,
        },
    }


def _draw(seed: int, name: str, size: int) -> int:
    """A number below `size` that depends on the seed and the name only, not on what else is read."""
    return int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()) % size
