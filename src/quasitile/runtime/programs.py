"""Other Python programs, run with quasitile's folders known to Transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from quasitile.errors import InputError
from quasitile.runtime.execution import Execution, set_default


def run_program(name: str, arguments: Sequence[str], execution: str = "dense") -> None:
    """Run a console program of an installed package in this process.

    Transformers has no way for a package to make itself known, so a program that only imports
    Transformers cannot open our folders; in this process it can.

    Args:
        name: Of the program, as it is typed.
        arguments: What follows it.
        execution: Of the models that it loads.

    Raises:
        InputError: No installed package has such a program.
    """
    found = [entry for entry in entry_points(group="console_scripts") if entry.name == name]
    if not found:
        raise InputError(f"no program {name} is installed beside quasitile; install its package into this environment")
    program = found[0].load()
    set_default(Execution(execution))
    sys.argv = [name, *arguments]
    sys.exit(program())
