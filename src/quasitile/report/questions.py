"""The questions shown: chosen deterministically, with their evidence and every model's answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from quasitile.report.formats import ELLIPSIS, SHARE, clip, evenly, number, pick
from quasitile.report.load import Rows, Run

MAX_QUESTIONS = 200
MAX_ANSWER = 220
MAX_CONTEXT = 140
SPLITS = {"train": "As taught", "phrasing": "Taught facts in new words", "test": "Documents it was not taught"}


@dataclass(frozen=True)
class Given:
    """What a model answered: `mark` is `right`, `partly` or `wrong`."""

    book: str
    text: str
    mark: str
    score: str


@dataclass
class Asked:
    """A question with everything that was answered to it."""

    ident: str
    split: str
    question: str
    answer: str
    where: str
    evidence: Markup
    given: dict[str, list[Given]] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """Whether reading changed the answer from memory: `learned`, `lost`, `kept` or `never`."""
        after = self._right("finished" if "finished" in self.given else "adapted")
        before = any(self._right(name) for name in ("aligned", "compressed", "original") if name in self.given)
        return ("kept" if before else "learned") if after else ("lost" if before else "never")

    def _right(self, model: str) -> bool:
        return any(given.mark == "right" for given in self.given.get(model, []) if given.book == "closed")


def choose(run: Run) -> tuple[list[tuple[str, list[Asked]]], int]:
    """At most `MAX_QUESTIONS`, shared fairly by the splits and evenly spaced in each; and how many there are.

    A split that needs less than its share leaves the rest to the others.
    """
    by_split: dict[str, dict[str, Rows]] = {}
    for row in run.lines["evaluation/answers.jsonl"]:
        by_split.setdefault(str(row.get("split", "")), {}).setdefault(str(row.get("id", "")), []).append(row)
    order = sorted(by_split, key=lambda split: (list(SPLITS).index(split) if split in SPLITS else len(SPLITS), split))
    total = sum(len(found) for found in by_split.values())
    shown, left = {}, MAX_QUESTIONS
    for rank, split in enumerate(sorted(order, key=lambda split: len(by_split[split]))):
        shown[split] = evenly(list(by_split[split]), left // (len(order) - rank))
        left -= len(shown[split])
    records = {str(pick(record, "metadata", "id")): record for record in run.lines["reading/questions.jsonl"]}
    sections = {
        (row.get("document"), row.get("section")): str(row.get("text", "")) for row in run.lines["reading/sections.jsonl"]
    }
    groups = []
    for split in order:
        rows = [_asked(ident, split, by_split[split][ident], records.get(ident), sections) for ident in shown[split]]
        groups.append((SPLITS.get(split, split or "No split given"), rows))
    return groups, total


def _asked(ident: str, split: str, rows: Rows, record: Any, sections: dict[tuple[Any, Any], str]) -> Asked:
    first = rows[0]
    about = pick(record, "metadata") or {}
    place = [clip(about.get("document") or ident.rsplit("/", 2)[0], 60), clip(about.get("section_title"), 60)]
    evidence = about.get("evidence") or first.get("evidence") or ""
    text = sections.get((about.get("document"), about.get("section")), "")
    asked = Asked(
        ident,
        split,
        clip(first.get("question"), 400),
        clip(first.get("answer"), MAX_ANSWER),
        " \N{MIDDLE DOT} ".join(part for part in place if part),
        highlighted(text, evidence),
    )
    for row in rows:
        asked.given.setdefault(str(row.get("model", "")), []).append(given(row))
    return asked


def given(row: dict[str, Any]) -> Given:
    """One model's answer and whether it is right."""
    exact, overlap = number(row.get("exact_match")), number(row.get("token_f1"))
    mark = "right" if exact is not None and exact >= 1 else ("partly" if overlap else "wrong")
    text = clip(row.get("given"), MAX_ANSWER).strip() or "(nothing)"
    return Given(str(row.get("book", "closed")), text, mark, SHARE(overlap) if overlap is not None else "")


def highlighted(text: str, evidence: Any) -> Markup:
    """The evidence marked, with a little of the section around it where the offsets are right."""
    if isinstance(evidence, str):
        evidence = {"text": evidence}
    quote = str(pick(evidence, "text") or "")
    if not quote:
        return Markup("")
    start, stop = pick(evidence, "start"), pick(evidence, "stop")
    marked = Markup(f"<mark>{escape(clip(quote, 500))}</mark>")
    if not (isinstance(start, int) and isinstance(stop, int) and text[start:stop] == quote):
        return marked
    return Markup(f"{escape(_before(text[:start]))}{marked}{escape(_after(text[stop:]))}")


def _before(text: str) -> str:
    """The end of the paragraph before the evidence."""
    text = text.rsplit("\n\n", 1)[-1]
    if len(text) <= MAX_CONTEXT:
        return text
    return ELLIPSIS + text[-MAX_CONTEXT:].split(" ", 1)[-1]


def _after(text: str) -> str:
    """The beginning of the paragraph after the evidence."""
    return clip(text.split("\n\n", 1)[0], MAX_CONTEXT)
