"""Adapters by the PEFT library, on dense layers and on coded ones; PEFT is imported where it is needed alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from quasitile.checkpoint.shards import ADAPTER
from quasitile.errors import InputError
from quasitile.folders import read_json


def optional(module: str) -> Any:
    """A module of a package that is not always there.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{package} is not installed; `pip install {package}`, or quasitile[peft]") from error


def adapter_base(folder: str | Path) -> str | None:
    """The model that an adapter of PEFT was trained on; nothing where a folder is no adapter's, or holds a whole model too.

    Raises:
        InputError: The adapter does not say.
    """
    file = Path(folder) / ADAPTER
    if not file.is_file() or (Path(folder) / "config.json").is_file():
        return None
    base = read_json(file).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{file} does not say which model it belongs to; set base_model_name_or_path there")
    return str(base)


def adapter_bytes(folder: str | Path) -> int:
    """Bytes of an adapter's own weight files."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def open_lora(model: Any, folder: str | Path) -> Any:
    """A model with an adapter that PEFT saved."""
    peft = optional("peft")
    config = optional("quasitile.runtime.adapters").with_coded_layers(peft.PeftConfig.from_pretrained(str(folder)))
    with known_layers():
        return peft.PeftModel.from_pretrained(model, str(folder), config=config).eval()


@contextmanager
def known_layers() -> Iterator[None]:
    """PEFT warns of layers that are not its own, although it asked for their class; and of Transformers' changing names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        warnings.filterwarnings("ignore", ".*deprecated", FutureWarning)
        yield
