"""Questions written by experts, found beside the papers: JSON lines, CSV, YAML, and InstructLab's `qna.yaml`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.reading.documents.document import Section, read_text
from quasitile.reading.normalise import normalise
from quasitile.reading.questions.candidate import Candidate
from quasitile.reading.sections import clean_title
from quasitile.reading.sentences import Sentence

REQUIRED = ("question", "answer", "evidence")


@dataclass(frozen=True)
class Curated:
    """One row as the expert wrote it, evidence normalised."""

    document: str
    section: str
    evidence: str
    candidate: Candidate


def read_curated(path: Path) -> list[Curated]:
    """Read a file of curated questions; the ending says its form.

    Raises:
        InputError: A row lacks a field, or a field has the wrong type.
    """
    rows = _FORMS[path.suffix.lower()](path)
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Columns as the keys of a JSON line; several texts in one cell are separated by `|`."""
    rows = []
    for row in csv.DictReader(io.StringIO(read_text(path))):
        kept: dict[str, Any] = {key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str)}
        for field in ("accepted", "phrasings"):
            kept[field] = [text.strip() for text in kept.get(field, "").split("|") if text.strip()]
        rows.append(kept)
    return rows


def _read_yaml(path: Path) -> list[dict[str, Any]]:
    """A list of rows, or InstructLab's examples: a context, and questions and answers on it."""
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())}); mend it") from error
    if isinstance(content, dict) and isinstance(content.get("seed_examples"), list):
        return [row for example in content["seed_examples"] for row in _from_example(example, path)]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return content
    raise InputError(f"{path} is neither a list of questions nor InstructLab's seed_examples; see docs/reading.md")


def _from_example(example: Any, path: Path) -> list[dict[str, Any]]:
    """The questions on one context; older files have one question beside it."""
    if not isinstance(example, dict) or not isinstance(example.get("context"), str):
        raise InputError(f"{path} has an example without a context; a question needs the text it rests on")
    pairs = example.get("questions_and_answers") or [example]
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise InputError(f"{path} has questions_and_answers that are no list of questions and answers")
    return [
        {"document": "", "evidence": example["context"], **{key: pair.get(key) for key in ("question", "answer")}}
        for pair in pairs
    ]


_FORMS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": read_jsonl,
    ".csv": _read_csv,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}
CURATED_FILES = (*(f"questions{suffix}" for suffix in _FORMS), "qna.yaml", "qna.yml")


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
    return Curated(str(row.get("document") or ""), str(row.get("section") or ""), evidence, candidate)


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
