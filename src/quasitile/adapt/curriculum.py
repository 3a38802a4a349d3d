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


@dataclass(frozen=True)
class Visit:
    """A section is read once: with how many gradient steps, and in which round over the corpus."""

    lesson: Lesson
    num_steps: int
    number: int = 0


# How hard a section is for the model as it stands, in nats a token of its answers.
Difficulty = Callable[[Lesson], float]


def in_order(lessons: list[Lesson], rng: random.Random, difficulty: Difficulty) -> list[Lesson]:
    """Documents in order, and sections in order inside a document."""
    return lessons


def backwards(lessons: list[Lesson], rng: random.Random, difficulty: Difficulty) -> list[Lesson]:
    """From the last section of the last document to the first of the first."""
    return lessons[::-1]


def shuffled(lessons: list[Lesson], rng: random.Random, difficulty: Difficulty) -> list[Lesson]:
    """A random order of sections over all documents."""
    return rng.sample(lessons, len(lessons))


def easy_first(lessons: list[Lesson], rng: random.Random, difficulty: Difficulty) -> list[Lesson]:
    """By what the model already makes of each section's questions, the best known first."""
    return sorted(lessons, key=difficulty)


ORDERS: dict[str, Callable[[list[Lesson], random.Random, Difficulty], list[Lesson]]] = {
    "reading": in_order,
    "reversed": backwards,
    "shuffled": shuffled,
    "easy first": easy_first,
    "cyclic": in_order,
}


def rounds(order: str, num_rounds: int, num_steps: int) -> tuple[int, int]:
    """How often the corpus is gone through, and gradient steps a section each time.

    Args:
        order: One of `ORDERS`. `cyclic` goes through the corpus once for every gradient step of a section, in place of
            taking all of them at once.
        num_rounds: Times it is read.
        num_steps: Gradient steps a section and round.
    """
    return (num_rounds * num_steps, 1) if order == "cyclic" else (num_rounds, num_steps)
