"""Questions written by experts, found in `questions.jsonl` beside the papers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.reading.documents.document import Section
from quasitile.reading.normalise import normalise
from quasitile.reading.questions.candidate import Candidate
from quasitile.reading.sections import clean_title
from quasitile.reading.sentences import Sentence

REQUIRED = ("document", "question", "answer", "evidence")


@dataclass(frozen=True)
class Curated:
    """One row as the expert wrote it, evidence normalised."""

    document: str
    section: str
    evidence: str
    candidate: Candidate


def read_curated(path: Path) -> list[Curated]:
    """Read a file of curated questions.

    Raises:
        InputError: A row lacks a field, or a field has the wrong type.
    """
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(read_jsonl(path), 1)]


def _row(row: dict[str, Any], where: str) -> Curated:
    for field in REQUIRED:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise InputError(f'{where} has no text in "{field}"; a curated question needs {", ".join(REQUIRED)}')
    for field in ("accepted", "phrasings"):
        if not isinstance(row.get(field, []), list) or not all(isinstance(item, str) for item in row.get(field, [])):
            raise InputError(f'{where} has something else than a list of texts in "{field}"; write ["...", "..."]')
    evidence = normalise(row["evidence"])
    questions = tuple(dict.fromkeys((row["question"].strip(), *(text.strip() for text in row.get("phrasings", [])))))
    answer = row["answer"].strip()
    candidate = Candidate(
        kind="expert",
        questions=questions,
        answer=answer,
        evidence=Sentence(evidence, 0, 0),
        conclusion=f"So the answer is {answer.rstrip('.')}.",
        quality=1.0,
        accepted=tuple(dict.fromkeys((answer, *row.get("accepted", [])))),
        supported=False,
        source="curated",
        trace=str(row.get("trace") or ""),
    )
    return Curated(row["document"], str(row.get("section") or ""), evidence, candidate)


def locate(curated: Curated, sections: list[Section]) -> tuple[int, int] | None:
    """The section's index and the evidence's start: in the section named, otherwise wherever it stands.

    A section that was merged or split answers to each of its titles.
    """
    wanted = _key(curated.section)

    def far(index: int) -> bool:
        return wanted not in {_key(sections[index].title), *map(_key, sections[index].title.split(" / "))}

    for index in sorted(range(len(sections)), key=far):
        start = sections[index].text.find(curated.evidence)
        if start >= 0:
            return index, start
    return None


def _key(title: str) -> str:
    return re.sub(r" \(part \d+\)$", "", clean_title(normalise(title))).casefold()
