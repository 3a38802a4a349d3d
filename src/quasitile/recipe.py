"""One configuration object a run, composed of the stages' own; YAML in and out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from quasitile.adapt import AdaptSettings
from quasitile.align import AlignSettings
from quasitile.baselines import BaselineSettings
from quasitile.codec.machine import STATES
from quasitile.compress import CompressSettings, InspectSettings, SampleSettings
from quasitile.errors import InputError
from quasitile.evaluate import EvaluateSettings
from quasitile.reading import ReadSettings
from quasitile.settings import Settings

EMBEDDED = "embedded:"
SHARED = {"seed", "device"}  # what stages take from the recipe where they have none of their own
DATA = Path(str(files("quasitile"))) / "data"
SettingsType = TypeVar("SettingsType", bound=Settings)


class Data(Settings):
    """Which data a run uses; empty means none. `embedded:NAME` is what the package carries."""

    text: str = Field(
        default="", description="general text for calibration, alignment and replay; empty: sampled from the model"
    )
    general: str = Field(default="", description="held-out general text")
    domain: str = Field(default="", description="held-out text of the field; empty: the held-out papers")
    entities: tuple[str, ...] = Field(default=(), description="one annotated file, or one to learn from and one to test on")
    properties: str = ""
    choices: dict[str, str] = Field(default={}, description="multiple-choice questions or a glossary, by name")


class WarmUp(Settings):
    """Whether the original learns the papers' text a little before it is compressed."""

    num_steps: int = Field(default=0, ge=0, description="0 for not at all")
    num_tokens: int = Field(default=40_000, ge=2, description="in all steps together")
    replay_share: float = Field(default=0.5, ge=0, lt=1, description="of them that are general text, lest it be forgotten")
    text_tokens: int = Field(default=256, ge=2, description="a window")
    learning_rate: float = Field(default=1e-4, gt=0)
    seed: int = 0


class Finish(Settings):
    """Whether the model that has read is compressed further: fewer answers than reading at that size, more of the language."""

    size: str = Field(default="", description="of the model in the end, as for compress; empty for what it has read at")
    reading_share: float = Field(
        default=0.25, ge=0, lt=1, description="of the windows of calibration, made of the questions that were taught"
    )
    trellis: Literal[*STATES] = Field(default=8, description="states; nothing is learned afterwards, so nothing is lost by it")  # type: ignore[valid-type]


class Recipe(Settings):
    """Everything that a run does."""

    name: str = "run"
    model: str = f"{EMBEDDED}base"
    papers: str = f"{EMBEDDED}papers"
    seed: int = Field(default=0, description="of every stage that has none of its own")
    device: str = Field(default="auto", description="where the models of every stage compute that names no device of its own")
    data: Data = Data()
    inspect: InspectSettings = InspectSettings()
    sample: SampleSettings = SampleSettings()
    warm_up: WarmUp = WarmUp()
    compress: CompressSettings = CompressSettings()
    baseline: BaselineSettings = BaselineSettings()
    align: AlignSettings = AlignSettings()
    read: ReadSettings = ReadSettings()
    adapt: AdaptSettings = AdaptSettings()
    finish: Finish = Finish()
    evaluate: EvaluateSettings = EvaluateSettings()


def presets() -> dict[str, Path]:
    """The recipes that the package carries by name: published methods in our parts (docs/presets.md)."""
    return {path.stem: path for path in sorted((DATA / "presets").glob("*.yaml"))}


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, the embedded one by default.

    Args:
        path: A YAML file, or the name of a preset (docs/presets.md).
        overrides: `key.key=value` each, values in YAML.

    Raises:
        InputError: The file is missing or no YAML, or holds an unknown key or an impossible value.
    """
    source = DATA / "demo.yaml" if path is None else presets().get(str(path), Path(path))
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
    except (FileNotFoundError, IsADirectoryError) as error:
        known = ", ".join(presets())
        raise InputError(f"{source} is not a recipe file; give a YAML file, or one of the presets {known}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{source} must be a mapping of keys to values")
    apply_overrides(content, overrides)
    for stage, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            section = content.setdefault(stage, {})
            for shared in SHARED & kind.model_fields.keys() & content.keys():
                if isinstance(section, dict):
                    section.setdefault(shared, content[shared])
    return validated(Recipe, content, str(source))


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `a.b=c` in nested mappings.

    Raises:
        InputError: No `=`, or a key that leads through a value.
    """
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set {override}: write KEY=VALUE, for example --set compress.size=10%")
        place: Any = content
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {override}: {parent} is a value and has no keys of its own")
        try:
            place[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: the value is not valid YAML") from error


def validated(kind: type[SettingsType], content: dict[str, Any], source: str) -> SettingsType:
    """Check settings.

    Raises:
        InputError: One line about the first fault, with the nearest known key for an unknown one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = keys_at(kind, first["loc"][:-1])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"
            raise InputError(f"{source}: unknown key {place}; {hint}") from error
        message = re.sub(r"\s+", " ", first["msg"])
        raise InputError(f"{source}: {place}={first['input']!r}: {message}") from error


def keys_at(kind: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """The known keys of a nested settings class."""
    for part in place:
        field = kind.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        kind = field.annotation
    return list(kind.model_fields)


def resolve(location: str) -> str:
    """A path or hub name as the stages take it: `embedded:NAME` and `$VARIABLE` filled in.

    Raises:
        InputError: A variable is not set, or the package carries nothing of that name.
    """
    if location.startswith(EMBEDDED):
        path = DATA / location.removeprefix(EMBEDDED)
        if not path.exists():
            raise InputError(f"{location} is not among what the package carries; give a path instead")
        return str(path)
    filled = os.path.expanduser(os.path.expandvars(location))
    if unset := re.search(r"\$\{?(\w+)", filled):
        raise InputError(f"{location} needs the environment variable {unset[1]}; set it to the folder of the data")
    return filled
