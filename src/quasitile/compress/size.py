"""The one dial: `25%`, `4GB` or `7B`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quasitile.errors import InputError

BYTE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
NUMBER_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BITS_OF_NUMBER = 3.5  # of a stored number at a quarter of the bytes (docs/results/demo.md: 3,472,884 bytes, 7,910,973 numbers)
HELP = "write a share of the bf16 bytes (25%), bytes (4GB, 900MB) or stored parameters (7B, 350M)"


@dataclass(frozen=True)
class Target:
    """What the compressed model may hold: either bytes or stored numbers."""

    num_bytes: int | None
    num_parameters: int | None


def parse_size(size: str, original_bytes: int) -> Target:
    """Read a size.

    Args:
        size: A share of `original_bytes` (`25%`), bytes (`4GB`, `2GiB`) or stored parameters (`7B`).
        original_bytes: Bytes of the whole model in bf16, embeddings included.

    Raises:
        InputError: It cannot be read, or is not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[A-Za-z]+)?\s*", size)
    if not match:
        raise InputError(f"size={size!r} is not a size; {HELP}")
    number, unit = float(match[1]), (match[2] or "").upper()
    if number <= 0:
        raise InputError(f"size={size!r} must be above zero; {HELP}")
    if unit == "%":
        return Target(int(original_bytes * number / 100), None)
    if unit in NUMBER_UNITS:  # "B" alone is billions of parameters, as in the names of models
        return Target(None, int(number * NUMBER_UNITS[unit]))
    if unit in BYTE_UNITS:
        return Target(int(number * BYTE_UNITS[unit]), None)
    raise InputError(f"size={size!r} has an unknown unit; {HELP}")
