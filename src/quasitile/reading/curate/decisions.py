"""What experts decided: an append-only file beside the reading folder, and the questions as they stand after it.

One JSON object a line, on the disk before the browser hears of it: `seq`, `time`, `who`, `action` (`keep`, `drop`, `edit`,
`add`, `undo`), `item`, and what was changed. Nothing is ever taken out of the file; `undo` is a line of its own. The file
survives reading the papers again, because items are known by their content and not by their number.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_jsonl

ACTIONS = ("keep", "drop", "edit", "add", "undo")


class Conflict(Exception):
    """The item was changed by somebody else since it was shown."""


@dataclass
class Item:
    """A fact with its wordings, as made and as decided."""

    name: str
    section: int
    kind: str
    source: str
    made: dict[str, Any]
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """What the page shows: the latest content, whether it is kept, and by whom."""
        content, status, who, when = dict(self.made), "open", "", ""
        for decision in self.decisions:
            action = decision["action"]
            status = {"keep": "kept", "drop": "dropped", "edit": "kept", "add": "kept"}[action]
            if action in ("edit", "add"):
                content.update({key: decision[key] for key in ("questions", "answer") if key in decision})
            who, when = decision["who"], decision["time"]
        version = self.decisions[-1]["seq"] if self.decisions else 0
        made = {"item": self.name, "kind": self.kind, "source": self.source, "section": self.section}
        return {**made, **content, "status": status, "who": who, "time": when, "version": version}


class Decisions:
    """The sections, items and decisions of one reading folder."""

    def __init__(self, reading: Path) -> None:
        self.reading = reading
        self.path = decisions_path(reading)
        self.sections = read_jsonl(reading / "sections.jsonl")
        self.items: dict[str, Item] = {}
        self.by_section: list[list[str]] = [[] for _ in self.sections]
        self.lines: list[dict[str, Any]] = []
        self._places = {(row["document"], row["section"]): index for index, row in enumerate(self.sections)}
        self._lock = Lock()
        self._load_items()
        for line in self._load_lines():
            self._replay(line)

    def _load_items(self) -> None:
        facts: dict[str, list[dict[str, Any]]] = {}
        for row in read_jsonl(self.reading / "questions.jsonl"):
            facts.setdefault(row["metadata"]["fact"], []).append(row)
        for rows in facts.values():
            place = self._places.get((rows[0]["metadata"]["document"], rows[0]["metadata"]["section"]))
            if place is not None:
                self._add_item(item_of(rows, place))

    def _add_item(self, item: Item) -> None:
        if item.name not in self.items:
            self.by_section[item.section].append(item.name)
        self.items[item.name] = item

    def _load_lines(self) -> list[dict[str, Any]]:
        """The journal; a last line that a kill cut off is removed."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as out:
                out.truncate(len(whole))
        return read_jsonl(self.path)

    def _replay(self, line: dict[str, Any]) -> None:
        """Bring the items up to a line; lines about items that are no longer made are kept and wait."""
        self.lines.append(line)
        if line["action"] == "undo":
            for item in self.items.values():
                item.decisions = [each for each in item.decisions if each["seq"] != line["of"]]
            return
        if line["action"] == "add" and line["item"] not in self.items:
            place = self._places.get((line["document"], line["section"]))
            if place is not None:
                made = {key: line[key] for key in ("questions", "answer", "start", "stop")}
                self._add_item(Item(line["item"], place, "expert", "curated", made))
        if line["item"] in self.items:
            self.items[line["item"]].decisions.append(line)

    def decide(self, action: str, item: str, who: str, version: int, content: dict[str, Any]) -> dict[str, Any]:
        """Write one decision to the disk and return the item's new state.

        Raises:
            Conflict: The item has another version than the one that was shown.
            InputError: An unknown action or item, or an empty question or answer.
        """
        with self._lock:
            if action not in ("keep", "drop", "edit"):
                raise InputError(f"{action!r} is no action; known are keep, drop, edit, add, undo")
            current = self._item(item).state()
            if current["version"] != version:
                raise Conflict(item)
            changed = checked(content) if action == "edit" else {}
            self._write({"action": action, "item": item, "who": who, **changed})
            return self.items[item].state()

    def add(self, section: int, who: str, content: dict[str, Any]) -> dict[str, Any]:
        """Add an expert's question to a section; `start` and `stop` are its evidence.

        Raises:
            InputError: No such section, an empty question, or evidence outside the text.
        """
        with self._lock:
            if not 0 <= section < len(self.sections):
                raise InputError(f"section {section} is not one of {len(self.sections)}")
            row, changed = self.sections[section], checked(content)
            start, stop = content.get("start"), content.get("stop")
            if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= len(row["text"])):
                raise InputError("the evidence is empty; mark the words of the section that hold the answer")
            name = blake2b(json.dumps([row["document"], row["section"], changed, len(self.lines)]).encode(), digest_size=8)
            place = {"document": row["document"], "section": row["section"], "start": start, "stop": stop}
            self._write({"action": "add", "item": name.hexdigest(), "who": who, **place, **changed})
            return self.items[name.hexdigest()].state()

    def undo(self, who: str) -> dict[str, Any] | None:
        """Take back the last decision of `who` that stands; the item's state, or nothing where there is none."""
        with self._lock:
            undone = {line["of"] for line in self.lines if line["action"] == "undo"}
            mine = (line for line in reversed(self.lines) if line["who"] == who and line["action"] != "undo")
            last = next((line for line in mine if line["seq"] not in undone), None)
            if last is None:
                return None
            self._write({"action": "undo", "of": last["seq"], "item": last["item"], "who": who})
            item = self.items.get(last["item"])
            if item and not item.decisions and item.source == "curated" and last["action"] == "add":
                self.by_section[item.section].remove(item.name)
                del self.items[item.name]
                return {"item": item.name, "section": item.section, "status": "gone"}
            return item.state() if item else None

    def changes(self, since: int) -> dict[str, Any]:
        """The sections in which something was decided after line `since`."""
        named = {line["item"] for line in self.lines[since:]}
        return {"seq": len(self.lines), "sections": sorted({self.items[name].section for name in named if name in self.items})}

    def section(self, index: int) -> dict[str, Any]:
        """A section with its items."""
        return {**self.sections[index], "index": index, "items": [self.items[name].state() for name in self.by_section[index]]}

    def overview(self, offset: int, limit: int) -> dict[str, Any]:
        """Some rows of the list of sections, with how many questions were decided."""
        rows = []
        for index in range(max(0, offset), min(len(self.sections), max(0, offset) + limit)):
            row, names = self.sections[index], self.by_section[index]
            decided = sum(bool(self.items[name].decisions) for name in names)
            shown = {key: row[key] for key in ("document", "title", "type")}
            rows.append({**shown, "index": index, "num_items": len(names), "num_decided": decided})
        total = sum(bool(item.decisions) for item in self.items.values())
        counts = {"num_sections": len(self.sections), "num_items": len(self.items), "num_decided": total}
        return {"rows": rows, **counts, "seq": len(self.lines)}

    def _item(self, name: str) -> Item:
        if name not in self.items:
            raise InputError("the question is no longer there; load the page again")
        return self.items[name]

    def _write(self, line: dict[str, Any]) -> None:
        line = {"seq": len(self.lines) + 1, "time": datetime.now(UTC).isoformat(timespec="seconds"), **line}
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line, ensure_ascii=False) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self._replay(line)


def decisions_path(reading: Path) -> Path:
    """Where the decisions on a reading folder lie: beside it, since reading again replaces the folder."""
    return reading.parent / f"{reading.name}.decisions.jsonl"


def item_of(rows: list[dict[str, Any]], section: int) -> Item:
    """One fact of `questions.jsonl`, named by what it says."""
    metadata, answer = rows[0]["metadata"], rows[0]["messages"][1]["content"]
    questions = [row["messages"][0]["content"] for row in rows]
    named = [metadata["document"], metadata["evidence"]["text"], metadata["kind"], answer, questions[0]]
    name = blake2b(json.dumps(named).encode(), digest_size=8).hexdigest()
    made = {
        "questions": questions,
        "answer": answer,
        "start": metadata["evidence"]["start"],
        "stop": metadata["evidence"]["stop"],
    }
    return Item(name, section, metadata["kind"], metadata["source"], made)


def checked(content: dict[str, Any]) -> dict[str, Any]:
    """Questions and answer as typed, without blanks about them.

    Raises:
        InputError: One is empty.
    """
    questions = [str(text).strip() for text in content.get("questions") or [] if str(text).strip()]
    answer = str(content.get("answer") or "").strip()
    if not questions or not answer:
        raise InputError("a question and an answer are needed; fill both")
    return {"questions": questions, "answer": answer}
