"""What a folder declares, checked against what a reader knows, the model, and the files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quasitile.checkpoint.headers import file_headers
from quasitile.codec.structure import STRUCTURES, Structure
from quasitile.errors import InputError
from quasitile.runtime.layers import KINDS

FORMAT_VERSION = 1
# No more weights are decoded than these from a folder, whatever it declares:
FREE_WEIGHTS = 1 << 26
WEIGHTS_A_BYTE = 1024
MAX_LAYERS = 10_000
MAX_NAME = 300
AXES_OF_KIND = {"experts": 3}


def check_version(version: Any) -> None:
    """Refuse a format from the future, and what is no version.

    Raises:
        InputError: This version does not read it.
    """
    if type(version) is not int or version < 1:
        raise InputError(f"config.json has the format_version {_short(version)!r}; copy the folder again")
    if version > FORMAT_VERSION:
        raise InputError(f"the folder has format {version}, this version reads {FORMAT_VERSION}; update quasitile")


def check_entries(modules: Any, tied: Any, axes: Any) -> None:
    """Look at the entries of the coded layers by themselves.

    Raises:
        InputError: One is not as docs/format.md says, or of an unknown kind or structure.
    """
    if not isinstance(modules, dict) or not isinstance(tied, dict) or not isinstance(axes, str):
        raise InputError("config.json has a quantization_config without modules, tied and axes; copy the folder again")
    for name, entry in modules.items():
        if len(name) > MAX_NAME:
            raise InputError(f"config.json names a layer {_short(name)}..., with {len(name)} letters; copy the folder again")
        if not isinstance(entry, dict):
            raise InputError(f"config.json says nothing of {name}; copy the folder again")
        kind: Any = entry.get("kind")
        shape: Any = entry.get("shape")
        sizes: Any = entry.get("payload_bytes")
        if not isinstance(kind, str) or kind not in KINDS:
            raise InputError(f"config.json calls {name} a {_short(kind)!r}, which this version does not know; update quasitile")
        if not _are_sizes(shape) or len(shape) != AXES_OF_KIND.get(kind, 2):
            raise InputError(f"config.json gives {name} the shape {_short(shape)}; copy the folder again")
        if not _are_sizes(sizes if kind == "experts" else [sizes]) or (kind == "experts" and len(sizes) != shape[0]):
            raise InputError(f"config.json gives {name} {_short(sizes)} bytes; copy the folder again")
        structure_of(name, entry)
    for head, source in tied.items():
        if head in modules or not isinstance(source, str) or modules.get(source, {}).get("kind") != "embedding":
            raise InputError(
                f"config.json ties {_short(head)} to {_short(source)}, which is no coded embedding; copy the folder again"
            )
    if axes and axes not in modules:
        raise InputError(f"config.json says that {_short(axes)} stores axes, and it is no coded layer; copy the folder again")


def _short(value: Any) -> str:
    """What a message can hold of anything."""
    return str(value)[:80]


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number > 0 for number in numbers)


def structure_of(name: str, entry: dict[str, Any]) -> Structure | None:
    """How the weight of an entry is expanded, or nothing.

    Raises:
        InputError: This version does not know the structure, or its numbers are impossible.
    """
    given = entry.get("structure")
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("name") not in STRUCTURES:
        known = given.get("name") if isinstance(given, dict) else given
        raise InputError(f"config.json gives {name} the structure {_short(known)!r}, which is unknown; update quasitile")
    side: Any = given.get("side")
    ratio: Any = given.get("ratio")
    rows, columns = entry["shape"][-2:]
    whole = all(type(number) is int and number >= 1 for number in (side, ratio))
    # Blocks are expanded whole, and cut off then.
    if not whole or side > max(rows, columns) or ratio > rows * columns or side * side > max(1 << 20, 4 * rows * columns):
        raise InputError(
            f"config.json gives {name} a structure of side {_short(side)} and ratio {_short(ratio)}; copy the folder again"
        )
    return Structure(given["name"], (rows, columns), side, ratio)


def check_depth(config: Any) -> None:
    """Refuse a configuration of which no model can be built in reasonable time; nothing has been built yet.

    Raises:
        InputError: It has too many layers.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise InputError(f"config.json declares {layers} layers, the limit is {MAX_LAYERS}; copy the folder again")


def check_files(model: Any, files: Iterable[str | Path], modules: dict[str, dict[str, Any]]) -> None:
    """Compare every tensor that a model expects, on the meta device, with the headers of the files.

    A model of the class that the folder was written from gets all its tensors from it; another one, of
    the same body, all those of the body.

    Args:
        model: With coded layers in their places.
        files: Its weight files.
        modules: What config.json says of the coded layers.

    Raises:
        InputError: A tensor is missing, or of another shape; or the folder declares more weights than so few bytes can hold.
    """
    headers: dict[str, dict[str, Any]] = {}
    files = [Path(file) for file in files]
    for file in files:
        for name, entry in file_headers(file).items():
            if name in headers:
                raise InputError(f"{file} holds {name}, which {headers[name]['file']} holds too; copy the whole folder again")
            headers[name] = entry
    weights = sum(math.prod(entry["shape"]) for entry in modules.values())
    stored = sum(entry["num_bytes"] for name, entry in headers.items() if name.endswith(".payload"))
    if weights > FREE_WEIGHTS + WEIGHTS_A_BYTE * stored:
        raise InputError(f"config.json declares {weights} weights in {stored} bytes; copy the folder again")
    prefix = f"{model.base_model_prefix}."
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    whole = type(model).__name__ in (getattr(model.config, "architectures", None) or [type(model).__name__])
    where = files[0].parent if files else "the folder"
    missing = []
    for name, tensor in model.state_dict().items():
        found = next((key for key in (name, prefix + name, name.removeprefix(prefix)) if key in headers), None)
        if found is None:
            if name not in tied and (whole or name.startswith(prefix)):
                missing.append(name)
            continue
        entry = headers[found]
        if tuple(entry["shape"]) != tuple(tensor.shape):
            file = f"{where}/{entry['file']}"
            raise InputError(f"{file}: {found} has the shape {entry['shape']}, expected {list(tensor.shape)}; copy it again")
        if name.endswith(".payload") and entry["dtype"] != "U8":
            raise InputError(f"{where}/{entry['file']}: {found} has the dtype {entry['dtype']}, expected U8; copy it again")
    if missing:
        raise InputError(
            f"{where} lacks {len(missing)} tensors ({missing[0]}, ...); the model would be partly random, copy it again"
        )
