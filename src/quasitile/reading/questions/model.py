"""Questions that a language model writes: asked for as JSON, believed only where the section holds evidence and answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from quasitile.errors import InputError
from quasitile.reading.documents.document import Section
from quasitile.reading.normalise import normalise
from quasitile.reading.questions.candidate import Candidate
from quasitile.reading.questions.client import Client, ModelSettings
from quasitile.reading.sentences import Sentence, split_sentences

_JSON = re.compile(r"\{.*\}", re.DOTALL)


class Written(BaseModel):
    """One question as the model writes it."""

    question: str
    answer: str
    evidence: str
    phrasings: list[str] = []
    trace: str = ""


class Answer(BaseModel):
    """The form of the whole answer."""

    questions: list[Written]


class Writer:
    """Asks a client about sections, several at a time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.prompt = load_prompt(client.settings, "questions.md", ("title", "type", "section", "text", "number"))
        self.check = load_prompt(client.settings, "check.md", ("evidence", "question", "answer"))

    def write(self, sections: Iterable[Section], title: str) -> Iterator[list[Candidate]]:
        """The candidates of each section, in order."""
        with ThreadPoolExecutor(self.client.settings.parallel) as pool:
            yield from pool.map(lambda section: self.ask(section, title), sections)

    def ask(self, section: Section, title: str) -> list[Candidate]:
        """Candidates for one section; those whose evidence is not in it come without a place and are dropped later."""
        prompt = self.prompt.format(
            title=title, type=section.type, section=section.title, text=section.text, number=self.client.settings.num_questions
        )
        written = self.client.ask(prompt, parse_answer, Answer.model_json_schema())
        found = [candidate_of(each, section) for each in written.questions] if written else []
        return [self._checked(candidate) for candidate in found]

    def _checked(self, candidate: Candidate) -> Candidate:
        """Where settings ask for it, the model's own word on whether the evidence supports the answer."""
        if not self.client.settings.check or not candidate.evidence.text:
            return candidate
        prompt = self.check.format(evidence=candidate.evidence.text, question=candidate.questions[0], answer=candidate.answer)
        if self.client.ask(prompt, parse_yes) is not False:
            return candidate
        return Candidate("model", candidate.questions, candidate.answer, Sentence("", 0, 0), "", 0.0, source="model")


def load_prompt(settings: ModelSettings, name: str, fields: tuple[str, ...]) -> str:
    """A prompt from the user's folder, or the package's.

    Raises:
        InputError: The file is missing or has other fields in braces.
    """
    path = Path(settings.prompts) / name if settings.prompts else None
    if path is not None and not path.is_file():
        raise InputError(f"{path} does not exist; copy the package's data/prompts/{name} there and edit it")
    prompt = path.read_text(encoding="utf-8") if path else (files("quasitile") / "data" / "prompts" / name).read_text("utf-8")
    try:
        prompt.format(**dict.fromkeys(fields, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: {error} is no field; known are {', '.join(fields)}, other braces are doubled") from error
    return prompt


def parse_answer(text: str) -> Answer:
    """The JSON in an answer, with or without words and fences about it.

    Raises:
        ValueError: There is none, or it has another form.
    """
    match = _JSON.search(text)
    if match is None:
        raise ValueError("no JSON")
    try:
        return Answer.model_validate(json.loads(match[0]))
    except (ValidationError, RecursionError) as error:
        raise ValueError("another form") from error


def parse_yes(text: str) -> bool:
    """Yes or no.

    Raises:
        ValueError: Neither.
    """
    word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    if word is None:
        raise ValueError("neither yes nor no")
    return word[1].lower() == "yes"


def candidate_of(written: Written, section: Section) -> Candidate:
    """A candidate whose evidence is the sentence of the section that holds what the model quoted."""
    evidence = place(normalise(written.evidence), section)
    questions = tuple(dict.fromkeys(text.strip() for text in (written.question, *written.phrasings) if text.strip()))
    answer = normalise(written.answer).rstrip(".")
    trace = normalise(written.trace).replace("\n", " ")
    conclusion = f"So the answer is {answer}."
    return Candidate("model", questions or ("",), answer, evidence, conclusion, 0.9, (answer,), source="model", trace=trace)


def place(quoted: str, section: Section) -> Sentence:
    """Where a quotation stands, widened to whole sentences; an empty sentence where it does not."""
    start = section.text.find(quoted) if quoted else -1
    if start < 0:
        return Sentence("", 0, 0)
    stop = start + len(quoted)
    touched = [each for each in split_sentences(section.text) if each.start < stop and each.stop > start]
    start, stop = min(start, touched[0].start), max(stop, touched[-1].stop)
    return Sentence(section.text[start:stop], start, stop)


def usage_of(writer: Writer | None, settings: ModelSettings) -> dict[str, Any]:
    """What the model cost, for the summary."""
    return {"model": writer.client.usage.summary(settings)} if writer else {}
