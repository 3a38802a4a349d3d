"""What has been finished of a long piece of work: a line each, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from quasitile.checkpoint.shards import checksum

FILE = "journal.jsonl"


class Journal:
    """A work folder with a journal of its finished pieces.

    A line is written after the file that it speaks of is complete, and holds its checksum. A last
    line that was cut off, and files that no line speaks of, count as not done.

    Args:
        folder: Made where it does not exist.
        purpose: What the work depends on, as JSON can hold it; a folder of other work is emptied.
    """

    def __init__(self, folder: Path, purpose: Any) -> None:
        self.folder = folder
        mark = hashlib.sha256(json.dumps(purpose, sort_keys=True).encode()).hexdigest()
        self.entries: dict[str, dict[str, Any]] = {}
        lines = self._lines() if (folder / FILE).is_file() else []
        if not lines or lines[0].get("purpose") != mark:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._append({"purpose": mark})
        else:
            self.entries = {line["key"]: line for line in lines[1:]}

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines; what follows them is cut off."""
        path = self.folder / FILE
        data = path.read_bytes()
        lines, end = [], 0
        for part in data.splitlines(keepends=True):
            try:
                lines.append(json.loads(part))
            except ValueError:
                break
            if not part.endswith(b"\n"):
                break
            end += len(part)
        if end < len(data):
            os.truncate(path, end)
            lines = lines[: data[:end].count(b"\n")]
        return lines

    def _append(self, line: dict[str, Any]) -> None:
        with (self.folder / FILE).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def path(self, name: str) -> Path:
        """A file in the work folder, its own folder made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def done(self, key: str, file: str | None = None, sha256: str | None = None, **values: Any) -> dict[str, Any]:
        """Note a finished piece.

        Args:
            key: Its name.
            file: What it made, in the work folder, complete and in place.
            sha256: Of the file, where that is known.
            **values: What else is known of it.
        """
        line = {"key": key, **values}
        if file is not None:
            line |= {"file": file, "sha256": sha256 or checksum(self.folder / file)}
        self._append(line)
        self.entries[key] = line
        return line

    def recall(self, key: str, check: bool = True) -> dict[str, Any] | None:
        """What was noted of a piece, or nothing if it has to be made.

        Args:
            key: Its name.
            check: Compare its file with the checksum; one that is missing or differs counts as not made.
        """
        line = self.entries.get(key)
        if line is not None and check and "file" in line:
            path = self.folder / line["file"]
            if not path.is_file() or checksum(path) != line["sha256"]:
                return None
        return line
