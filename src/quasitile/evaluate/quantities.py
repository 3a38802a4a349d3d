"""Reading values with units, so that `1.2 Ah/g` and `1200 mAh g^-1` are the same."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from quasitile.evaluate.answers import exact_match, plain_characters

PREFIXES = {
    "f": 1e-15, "p": 1e-12, "n": 1e-9, "μ": 1e-6, "u": 1e-6, "m": 1e-3, "c": 1e-2, "d": 1e-1,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip

# A symbol is a scale times powers of base symbols. Those of the first table take a prefix.
UNITS: dict[str, tuple[float, dict[str, int]]] = {
    "m": (1, {"m": 1}), "g": (1, {"g": 1}), "s": (1, {"s": 1}), "A": (1, {"A": 1}), "K": (1, {"K": 1}), "mol": (1, {"mol": 1}),
    "V": (1, {"V": 1}), "W": (1, {"W": 1}), "J": (1, {"W": 1, "s": 1}), "Pa": (1, {"Pa": 1}), "bar": (1e5, {"Pa": 1}),
    "N": (1, {"Pa": 1, "m": 2}), "Hz": (1, {"s": -1}), "C": (1, {"A": 1, "s": 1}), "Ω": (1, {"Ω": 1}), "ohm": (1, {"Ω": 1}),
    "S": (1, {"Ω": -1}), "F": (1, {"F": 1}), "T": (1, {"T": 1}), "eV": (1, {"eV": 1}), "M": (1e3, {"mol": 1, "m": -3}),
    "L": (1e-3, {"m": 3}), "l": (1e-3, {"m": 3}), "Ah": (3600, {"A": 1, "s": 1}), "Wh": (3600, {"W": 1, "s": 1}),
}  # fmt: skip
PLAIN_UNITS: dict[str, tuple[float, dict[str, int]]] = {
    "min": (60, {"s": 1}), "h": (3600, {"s": 1}), "hour": (3600, {"s": 1}), "hours": (3600, {"s": 1}), "day": (86400, {"s": 1}),
    "days": (86400, {"s": 1}), "minutes": (60, {"s": 1}), "Å": (1e-10, {"m": 1}), "%": (1, {"%": 1}), "percent": (1, {"%": 1}),
    "°C": (1, {"°C": 1}), "°": (1, {"°": 1}), "rpm": (1, {"rpm": 1}), "ppm": (1, {"ppm": 1}), "dec": (1, {"dec": 1}),
    "dB": (1, {"dB": 1}),
}  # fmt: skip
SPELLINGS = {"W/mK": "W/(m K)", "per cent": "percent", "° C": "°C"}

NUMBER = re.compile(
    r"(?<![\w.^])(?P<sign>(?<![\w)])[+-])?(?:10\^(?P<bare>[+-]?\d+)"
    r"|(?P<digits>\d+(?:\.\d+)?|\.\d+)(?:\(\d+\))?(?: *[×x*·] *10\^?(?P<power>[+-]?\d+)|[eE](?P<e>[+-]?\d+)(?!\w))?)"
)
UNIT_TOKEN = re.compile(
    r"[ ·*]*(?P<slash>/)?[ (]*(?P<symbol>(?:wt|at|vol|mol)\.? ?%|°C|[°%]|[^\W\d_]+)(?:\^?(?P<power>[+-]?\d+))?\)?"
)
RANGE = re.compile(r" *(?:-|to|\.\.+) *")
BETWEEN = re.compile(r" *and *")
PLUS_MINUS = re.compile(r" *(?:±|\+/-|\+-) *")
COMPARISONS = {
    "<": "<", "≤": "<", "up to": "<", "below": "<", "at most": "<", "less than": "<", "under": "<",
    ">": ">", "≥": ">", "above": ">", "at least": ">", "more than": ">", "over": ">", "exceeds": ">",
}  # fmt: skip

Unit = tuple[float, tuple[tuple[str, int], ...]]


class Quantity(NamedTuple):
    """A value from `low` to `high` (equal unless it is a range) in base units, with what is known of its bounds."""

    low: float
    high: float
    uncertainty: float
    comparison: str
    dimension: tuple[tuple[str, int], ...]


def quantities(text: str, symbols: Collection[str] = ()) -> Iterator[Quantity]:
    """The values of a text, in order; digits inside words and formulas are none.

    Args:
        text: Words, numbers and units.
        symbols: Units beyond `UNITS` and `PLAIN_UNITS`, each its own dimension.
    """
    text, place = plain(text), 0
    while number := NUMBER.search(text, place):
        low, (unit, place) = magnitude(number), read_unit(text, number.end(), symbols)
        high, uncertainty = low, 0.0
        if second := following(text, place, PLUS_MINUS):
            uncertainty, (second_unit, place) = magnitude(second), read_unit(text, second.end(), symbols)
            unit = unit if unit[1] else second_unit
        elif second := following(text, place, BETWEEN if text[: number.start()].rstrip().endswith("between") else RANGE):
            second_unit, end = read_unit(text, second.end(), symbols)
            if not unit[1] or unit == second_unit:  # "between 10% and 78%", but not "3 h and 500 K"
                high, unit, place = magnitude(second), second_unit, end
        scale, dimension = unit
        yield Quantity(low * scale, high * scale, uncertainty * scale, comparison_before(text, number.start()), dimension)


def same_value(given: str, expected: str, unit: str = "", tolerance: float = 1e-6) -> bool:
    """Whether an answer states an expected value, whatever the spelling and the prefix of the unit.

    The first value of the answer that has the expected dimension decides. Both ends of a range
    have to agree, and the uncertainty where both sides state one. A value without its unit is
    wrong. An expected value that is no number has to match as words do.

    Args:
        given: The answer.
        expected: The value as printed.
        unit: Its unit, if not part of `expected`.
        tolerance: The relative difference that counts as none.
    """
    wanted = first_value(expected, unit)
    if wanted is None:
        return exact_match(given, [f"{expected} {unit}", expected]) == 1
    found = next((value for value in quantities(given, unknown_symbols(unit)) if value.dimension == wanted.dimension), None)
    if found is None or found.comparison != wanted.comparison:
        return False
    pairs = [(found.low, wanted.low), (found.high, wanted.high)]
    if found.uncertainty and wanted.uncertainty:
        pairs.append((found.uncertainty, wanted.uncertainty))
    return all(math.isclose(ours, theirs, rel_tol=tolerance) for ours, theirs in pairs)


def first_value(text: str, unit: str = "") -> Quantity | None:
    """The first value of a text followed by its unit, or `None`."""
    return next(quantities(f"{text} {unit}", unknown_symbols(unit)), None)


def plain(text: str) -> str:
    """Text with plain digits, dashes and spaces, and without the commas of thousands."""
    text = plain_characters(text)
    for spelling, replacement in SPELLINGS.items():
        text = text.replace(spelling, replacement)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"(?<=\d)- (?=\d)|(?<=\d) -(?=\d)", "-", " ".join(text.split()))


def magnitude(number: re.Match[str]) -> float:
    """The number that `NUMBER` matched."""
    sign = -1.0 if number["sign"] == "-" else 1.0
    if number["bare"] is not None:
        return sign * 10.0 ** int(number["bare"])
    return sign * float(f"{number['digits']}e{number['power'] or number['e'] or 0}")


def following(text: str, place: int, joint: re.Pattern[str]) -> re.Match[str] | None:
    """The number after a `joint` (a range's dash, a plus-minus sign) at this place, or `None`."""
    joined = joint.match(text, place)
    # cut off what is before, so that the dash of "12-13" is not looked at as a sign or part of a word
    return NUMBER.match(" " * joined.end() + text[joined.end() :], joined.end()) if joined else None


def comparison_before(text: str, place: int) -> str:
    """`<` or `>` where the words before a number make it a bound, else nothing."""
    before = text[:place].rstrip().lower()
    return next((sign for words, sign in COMPARISONS.items() if before.endswith(words)), "")


def read_unit(text: str, place: int, symbols: Collection[str] = ()) -> tuple[Unit, int]:
    """The scale and dimension of the unit at a place of a text, and where it ends.

    Reading stops at the first word that is no unit. After a slash everything divides, as in
    `J/mol K` or `W/(m K)`.
    """
    scale, powers, divides = 1.0, Counter[str](), False
    while token := UNIT_TOKEN.match(text, place):
        divides = divides or bool(token["slash"])
        known = symbol_unit(token["symbol"], symbols)
        if known is None:
            break
        power = int(token["power"] or 1) * (-1 if divides else 1)
        scale *= known[0] ** power
        for base, own in known[1].items():
            powers[base] += own * power
        place = token.end()
    return (scale, tuple(sorted((base, power) for base, power in powers.items() if power))), place


def symbol_unit(symbol: str, symbols: Collection[str] = ()) -> tuple[float, dict[str, int]] | None:
    """Scale and base powers of one symbol, known or known with a prefix, or `None`."""
    if symbol.endswith("%") and symbol != "%":
        return 1.0, {symbol.rstrip("%. ") + "%": 1}  # wt%, at.%, vol%, mol%
    known = _simple_unit(symbol)
    if known is None and symbol in symbols:
        return 1.0, {symbol: 1}
    return known


def _simple_unit(symbol: str) -> tuple[float, dict[str, int]] | None:
    """Scale and base powers of a symbol or of a prefix and a symbol."""
    known = UNITS.get(symbol) or PLAIN_UNITS.get(symbol)
    if known is None and symbol[:1] in PREFIXES and symbol[1:] in UNITS:
        scale, powers = UNITS[symbol[1:]]
        known = PREFIXES[symbol[0]] * scale, powers
    return known


def unknown_symbols(unit: str) -> set[str]:
    """The symbols of a unit that are in neither table, such as `cycles`."""
    return {token["symbol"] for token in UNIT_TOKEN.finditer(plain(unit)) if symbol_unit(token["symbol"]) is None}
