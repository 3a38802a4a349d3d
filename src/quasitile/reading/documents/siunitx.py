"""Numbers, units and formulae that LaTeX packages print: siunitx and mhchem."""

from __future__ import annotations

import re

_PREFIXES = {
    "femto": "f", "pico": "p", "nano": "n", "micro": "μ", "milli": "m", "centi": "c", "deci": "d", "hecto": "h", "kilo": "k",
    "mega": "M", "giga": "G", "tera": "T",
}  # fmt: skip
_UNITS = {
    "metre": "m", "meter": "m", "gram": "g", "second": "s", "ampere": "A", "kelvin": "K", "mole": "mol", "candela": "cd",
    "celsius": "°C", "degreeCelsius": "°C", "percent": "%", "electronvolt": "eV", "joule": "J", "watt": "W", "volt": "V",
    "ohm": "Ω", "siemens": "S", "tesla": "T", "pascal": "Pa", "newton": "N", "hertz": "Hz", "coulomb": "C", "farad": "F",
    "minute": "min", "hour": "h", "day": "d", "litre": "L", "liter": "L", "bar": "bar", "angstrom": "Å", "degree": "°",
    "molar": "M", "weber": "Wb", "henry": "H", "radian": "rad", "atm": "atm", "torr": "Torr", "decibel": "dB",
}  # fmt: skip
_SHORT = {
    "nm": "nm", "um": "μm", "mm": "mm", "cm": "cm", "km": "km", "pm": "pm", "kg": "kg", "mg": "mg", "ug": "μg", "ms": "ms",
    "us": "μs", "ns": "ns", "mA": "mA", "uA": "μA", "mV": "mV", "kV": "kV", "mW": "mW", "kW": "kW", "kPa": "kPa", "MPa": "MPa",
    "GPa": "GPa", "eV": "eV", "meV": "meV", "keV": "keV", "kJ": "kJ", "kHz": "kHz", "MHz": "MHz", "GHz": "GHz", "mol": "mol",
    "mmol": "mmol", "mL": "mL", "ml": "mL", "K": "K", "V": "V", "W": "W", "A": "A", "s": "s", "h": "h", "g": "g", "m": "m",
}  # fmt: skip
_POWERS = {"squared": "2", "cubed": "3", "square": "2", "cubic": "3"}
_TOKEN = re.compile(r"\\([A-Za-z]+)(?:\s*\{([^{}]*)\})?|([^\\.~\s{}]+)")


def unit_to_text(unit: str) -> str:
    r"""Print a unit: `\watt\per\metre\per\kelvin` or `W.m^{-1}.K^{-1}` to `W m^-1 K^-1`."""
    unit = re.sub(r"\^\{?([+-]?\d+)\}?", r"^\1", unit)
    words: list[str] = []
    prefix, sign, before = "", "", ""
    for match in _TOKEN.finditer(unit):
        name, argument, literal = match[1] or "", match[2], match[3]
        if name == "per":
            sign = "-"
        elif name in _PREFIXES:
            prefix = _PREFIXES[name]
        elif name in ("squared", "cubed", "tothe"):
            power = argument if name == "tothe" else _POWERS[name]
            if words and power:
                words[-1] = f"{words[-1].removesuffix('^-1')}^{'-' if words[-1].endswith('^-1') else ''}{power}"
        elif name in ("square", "cubic"):
            before = _POWERS[name]
        else:
            symbol = literal or prefix + (_UNITS.get(name) or _SHORT.get(name) or name)
            power = sign + (before or ("1" if sign else ""))
            words.append(f"{symbol}^{power}" if power else symbol)
            prefix, sign, before = "", "", ""
    return " ".join(words)


def number_to_text(number: str) -> str:
    r"""Print a siunitx number: `1.2e-4` to `1.2 × 10^-4`, `1.2(3)` and `1.2 +- 0.3` as they are read."""
    number = number.strip().replace(r"\pm", "±").replace("+-", "±").replace("{", "").replace("}", "")
    number = re.sub(r"\s*±\s*", " ± ", number)
    number = re.sub(r"^([+-]?)[eE]([+-]?\d+)$", r"\g<1>10^\2", number)
    return re.sub(r"(?<=[\d)])\s*[eE]\+?(-?\d+)", r" × 10^\1", number).replace("^+", "^")


def quantity_to_text(number: str, unit: str) -> str:
    """Print a number with its unit; none but the per cent and degree signs is set off by a space."""
    printed = unit_to_text(unit)
    return f"{number_to_text(number)}{'' if printed in ('%', '°') else ' '}{printed}"


def chemistry_to_text(formula: str) -> str:
    r"""Print an mhchem formula: `\ce{La_{0.6}CoO_{3-\delta}}`, charges as `^`, arrows as letters."""
    formula = formula.replace(r"\delta", "δ").replace("$", "")
    formula = re.sub(r"<=>+|<->", "⇌", formula)
    formula = re.sub(r"-+>(?:\[[^\]]*\])*", "→", formula)
    formula = re.sub(r"\^\{?([^{}\s]*)\}?", r"^\1", re.sub(r"_\{([^{}]*)\}|_(\w)", r"\1\2", formula))
    return re.sub(r"(?<=[A-Za-z0-9)\]])(?<!\^)(?<!\^\d)([+-])(?=\s|$)", r"^\1", formula)
