"""Output folders: a stage's folder appears whole or not at all.

Every stage leaves `recipe.yaml` (its resolved settings), `summary.json` (keys with units in their
names), `provenance.json` and, where something is trained, `metrics.jsonl`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from quasitile.errors import InputError
from quasitile.settings import Settings

STAGE_FILES = ("recipe.yaml", "summary.json", "provenance.json")


@dataclass
class Stage:
    """An output folder while it is being written: fill `summary`, append with `metric`."""

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)

    def metric(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(values, ensure_ascii=False) + "\n")


def partial_path(out: Path) -> Path:
    """Where a stage works before its folder appears: beside `out`, so that the rename is atomic."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def stage_folder(
    out: str | Path, stage: str, settings: Settings, seed: int = 0, resume: bool = False, **inputs: object
) -> Iterator[Stage]:
    """Write a stage's folder under a temporary name and move it into place at the end.

    Args:
        out: The folder to make. It must not hold anything that is not a result of the same stage,
            which is replaced.
        stage: The stage's name, for messages and provenance.
        settings: Written to `recipe.yaml`.
        seed: Written to `provenance.json`.
        resume: Keep an earlier, unfinished attempt's files instead of starting anew, and leave
            them in place when the block is stopped; what cannot be used (`InputError`) leaves nothing.
        **inputs: Paths and other inputs, for provenance.

    Raises:
        InputError: `out` holds something else.
    """
    out = Path(out)
    check_replaceable(out, stage)
    work = partial_path(out)
    if work.exists() and not resume:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    current = Stage(work)
    try:
        yield current
        write_yaml(work / "recipe.yaml", settings.model_dump(mode="json"))
        write_json(work / "summary.json", current.summary)
        record = provenance(stage, seed, time.monotonic() - started, {key: str(value) for key, value in inputs.items()})
        write_json(work / "provenance.json", record)
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    except BaseException as error:
        if not resume or isinstance(error, InputError):
            shutil.rmtree(work, ignore_errors=True)
        raise


def check_replaceable(out: Path, stage: str) -> None:
    """Refuse to overwrite what is not an earlier result of the same stage.

    Raises:
        InputError: `out` is a file, or a folder with other content.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the output of `{stage}`")
    if not any(out.iterdir()):
        return
    record = out / "provenance.json"
    earlier = read_json(record).get("stage") if record.is_file() else None
    if earlier != stage:
        held = f"the output of `{earlier}`" if earlier else "other files"
        raise InputError(f"{out} already holds {held}; choose another output folder for `{stage}`")


def provenance(stage: str, seed: int, seconds: float, inputs: dict[str, str]) -> dict[str, Any]:
    """Who made this, with what, from what, and at which cost."""
    versions = {"python": platform.python_version()}
    for package in ("quasitile", "torch", "transformers", "safetensors", "numpy", "constriction"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "stage": stage,
        "versions": versions,
        "commit": _commit(),
        "seed": seed,
        "inputs": inputs,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _commit() -> str:
    """The commit of the checkout the package runs from, or nothing."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML atomically, keys in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); make it again") from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file.

    Raises:
        InputError: The file is missing, or a line (named) is not a JSON object.
    """
    path, rows = Path(path), []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}:{number} is not a JSON object; expected one object a line")
                    rows.append(row)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}:{len(rows) + 1} is not valid JSON ({error}); mend or remove the line") from error
    return rows
