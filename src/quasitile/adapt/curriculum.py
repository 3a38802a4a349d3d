"""What is read, and in which order."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_jsonl

Record = dict[str, Any]


@dataclass
class Lesson:
    """A section with the questions that teach it, in order."""

    document: str
    section: int
    title: str
    text: str
    records: list[Record] = field(default_factory=list)

    def asked(self, count: int) -> list[Record]:
        """One question a fact, at most `count`: experts' first, then in order."""
        firsts = {record["metadata"]["fact"]: record for record in reversed(self.records)}
        chosen = [record for record in self.records if firsts[record["metadata"]["fact"]] is record]
        return sorted(chosen, key=lambda record: record["metadata"]["source"] != "curated")[:count]


def read_lessons(reading: str | Path) -> list[Lesson]:
    """The training sections of a reading folder that have questions, in reading order.

    Raises:
        InputError: There is none.
    """
    folder = Path(reading)
    lessons = {
        (row["document"], row["section"]): Lesson(row["document"], row["section"], row["title"], row["text"])
        for row in read_jsonl(folder / "sections.jsonl")
        if row["split"] == "train"
    }
    for record in read_jsonl(folder / "questions.jsonl"):
        metadata = record["metadata"]
        if metadata["split"] == "train":
            lessons[metadata["document"], metadata["section"]].records.append(record)
    taught = [lesson for lesson in lessons.values() if lesson.records]
    if not taught:
        raise InputError(f"{folder} holds no question to train on; read papers that are not all held out")
    return taught


def spread(lessons: list[Lesson], count: int) -> list[Lesson]:
    """`count` lessons evenly spread over all, or all where `count` is 0."""
    if not count or count >= len(lessons):
        return lessons
    return [lessons[i * len(lessons) // count] for i in range(count)]


def shuffled(lessons: list[Lesson], rng: random.Random) -> list[Lesson]:
    """A random order of sections over all documents."""
    return rng.sample(lessons, len(lessons))


ORDERS: dict[str, Callable[[list[Lesson], random.Random], list[Lesson]]] = {
    "reading": lambda lessons, rng: lessons,
    "reversed": lambda lessons, rng: lessons[::-1],
    "shuffled": shuffled,
}
