"""How a number looks on the page: with its unit, missing as a dash, never as zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from quasitile.progress import human_bytes

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
MULTIPLY = "\N{MULTIPLICATION SIGN}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def pick(value: Any, *keys: str) -> Any:
    """Follow `keys` into nested objects; `None` where one is absent."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def number(value: Any) -> float | None:
    """`value` as a finite float (the mean, where it was measured over seeds), or `None`."""
    if isinstance(value, dict):
        value = value.get("mean")
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


@dataclass(frozen=True)
class Format:
    """A fixed number of decimals, after a scale and before a suffix."""

    places: int
    suffix: str = ""
    scale: float = 1.0

    def bare(self, value: float) -> str:
        """The number without its suffix; never a negative zero."""
        text = f"{value * self.scale:,.{self.places}f}"
        if text.startswith("-"):
            return text[1:] if float(text.replace(",", "")) == 0 else MINUS + text[1:]
        return text

    def __call__(self, value: Any) -> str:
        """The number with its suffix; `mean ± interval` where seeds exist; a dash where it is missing."""
        mean, interval = number(value), number(pick(value, "interval"))
        if mean is None:
            return DASH
        spread = "" if interval is None else f" \N{PLUS-MINUS SIGN} {self.bare(interval)}"
        return self.bare(mean) + spread + self.suffix

    def change(self, value: float) -> str:
        """A difference, with its sign; zero has none."""
        text = self.bare(value)
        plain = text.startswith(MINUS) or float(text.replace(",", "")) == 0
        return ("" if plain else "+") + text + self.suffix


class Bytes(Format):
    """Bytes in powers of 1000; each number carries its own unit."""

    def bare(self, value: float) -> str:
        """`3.48 MB`."""
        return human_bytes(value)


COUNT = Format(0)
NATS = Format(3)
PERPLEXITY = Format(2)
BITS = Format(3)
SHARE = Format(1, " %", 100.0)
SECONDS = Format(1, " s")
SHORT_SECONDS = Format(2, " s")
TIMES = Format(1, MULTIPLY)
RATE = Format(1)
SIZE = Bytes(2)


def duration(value: Any) -> str:
    """Seconds as a person reads them: `12.1 s`, `4 min 10 s`, `2 h 5 min`."""
    seconds = number(value)
    if seconds is None or seconds < 60:
        return SECONDS(seconds)
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def precise(value: Any) -> str:
    """Three significant digits, for quantities that span decades: `0.0213`, `1.2e-05`."""
    found = number(value)
    if found is None:
        return DASH
    text = f"{found:.3g}"
    return MINUS + text[1:] if text.startswith("-") else text


def clip(text: Any, limit: int) -> str:
    """At most `limit` characters, cut at a space where there is one, with an ellipsis."""
    text = "" if text is None else str(text)
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    space = head.rfind(" ")
    return (head[:space] if space > limit // 2 else head).rstrip() + ELLIPSIS


def plural(count: float, noun: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{COUNT(count)} {noun}{'' if count == 1 else 's'}"


def listed(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def evenly(items: list[Any], limit: int) -> list[Any]:
    """At most `limit` of `items`, evenly spaced from the first on; the same every time."""
    if len(items) <= limit:
        return items
    return [items[index * len(items) // limit] for index in range(limit)]
