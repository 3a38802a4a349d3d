"""Read a run folder: JSON only, and what a run has not finished is simply absent."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.folders import read_json, read_jsonl

MODELS = ("original", "compressed", "aligned", "adapted", "finished")
FOLDERS = {
    "inspect": "plan",
    "text": "text",
    "warm_up": "warmed-up",
    "compress": "compressed",
    "align": "aligned",
    "read": "reading",
    "adapt": "adapted",
    "finish": "finished",
    "evaluate": "evaluation",
}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Finished:
    """A stage whose folder exists."""

    summary: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything the page needs from a run folder."""

    name: str
    folder: str
    recipe: str
    summary: dict[str, Any]
    stages: dict[str, Finished]
    picture: dict[str, Any]
    models: dict[str, dict[str, Any]]
    examples: Rows
    lines: dict[str, Rows] = field(default_factory=dict)

    def has(self, stage: str) -> bool:
        """Whether the stage has finished."""
        return stage in self.stages

    @property
    def final(self) -> str | None:
        """The last model that was evaluated, other than the original."""
        return next((name for name in reversed(self.models) if name != "original"), None)


LINES = (
    "aligned/metrics.jsonl",
    "adapted/metrics.jsonl",
    "adapted/answers.jsonl",
    "reading/documents.jsonl",
    "reading/sections.jsonl",
    "reading/questions.jsonl",
    "reading/dropped.jsonl",
    "reading/skipped.jsonl",
    "evaluation/answers.jsonl",
)


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: There is no such folder, it is not a run, or one of its files is broken.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder that `quasitile run` wrote")
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the folder that `quasitile run` wrote")
    summary = _json_object(path / "summary.json")
    if "stages" not in summary and not any(_is_stage(path / folder) for folder in FOLDERS.values()):
        raise InputError(f"{path} holds no finished stage of a run; give the folder that `quasitile run` wrote")
    stages = {}
    for stage, folder in FOLDERS.items():
        if (path / folder).is_dir():
            own = _json_object(path / folder / "summary.json")
            said = (summary.get("stages") or {}).get(stage) or {}
            stages[stage] = Finished(own or said, _json_object(path / folder / "provenance.json"))
    measured = stages["evaluate"].summary.get("models") if "evaluate" in stages else None
    measured = {name: values for name, values in (measured or {}).items() if isinstance(values, dict)}
    order = [name for name in MODELS if name in measured] + [name for name in measured if name not in MODELS]
    recipe = path / "recipe.yaml"
    examples = path / "evaluation" / "examples.json"
    return Run(
        name=str(summary.get("name") or path.resolve().name),
        folder=path.resolve().name,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        summary=summary,
        stages=stages,
        picture=_json_object(path / "compressed" / "picture.json"),
        models={name: measured[name] for name in order},
        examples=[row for row in (read_json(examples) if examples.is_file() else []) if isinstance(row, dict)],
        lines={name: read_jsonl(path / name) if (path / name).is_file() else [] for name in LINES},
    )


def _is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("summary.json", "provenance.json"))


def _json_object(path: Path) -> dict[str, Any]:
    """The object in `path`, or an empty one where there is no such file."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; make it again")
    return value
