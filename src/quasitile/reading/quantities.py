"""A grammar of numbers, ranges and units in normalised text."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SYMBOLS = {
    "temperature": "°C K °F mK",
    "time": "s ms μs us ns ps fs min h hr hrs hour hours minute minutes second seconds day days week weeks month months",
    "pressure": "Pa kPa MPa GPa TPa mPa hPa bar mbar kbar Torr torr mTorr atm psi",
    "energy": "eV meV keV MeV J kJ mJ MJ cal kcal Wh kWh mWh Ry",
    "length": "m cm mm μm um nm Å pm km inch",
    "mass": "g kg mg μg ug ng",
    "voltage": "V mV kV μV",
    "current": "A mA μA nA pA kA",
    "power": "W mW kW MW μW",
    "amount": "mol mmol μmol M mM",
    "frequency": "Hz kHz MHz GHz THz rpm",
    "share": "% wt% wt.% mol% mol.% at% at.% vol% vol.% ppm ppb",
    "angle": "° rad mrad",
    "resistance": "Ω kΩ MΩ mΩ",
    "conductance": "S mS μS",
    "force": "N kN mN μN",
    "field": "T mT Oe kOe",
    "charge": "Ah mAh C mC μC",
    "capacitance": "F mF μF nF pF",
    "volume": "L mL μL ml l sccm",
    "hardness": "HV HRC",
    "magnetisation": "emu",
    "count": "cycles",
}
UNIT_KINDS = {symbol: kind for kind, symbols in _SYMBOLS.items() for symbol in symbols.split()}
_AMBIGUOUS_ALONE = frozenset([
    "C", "N", "F", "l", "us", "um",
])  # fmt: skip

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_POWER = r"\s?[×x*·]\s?10\s?\^?\s?-?\d+"
NUMBER = rf"(?:[-+](?=\d))?(?:10\^-?\d+|{_DIGITS}(?:{_POWER}|[eE]-?\d+)?)"
_UNCERTAINTY = rf"(?:\s?(?:±|\+/-)\s?{_DIGITS}(?:{_POWER})?|\(\d{{1,2}}\)(?=\s?[^\W\d_°%]))?"
RANGE = rf"{NUMBER}{_UNCERTAINTY}(?:\s*(?:-|–|—|~|(?<=\s)to)\s*{NUMBER}{_UNCERTAINTY})?"
_ATOM = "|".join(sorted((re.escape(symbol) for symbol in UNIT_KINDS), key=len, reverse=True))
_SIGNED = r"(?:\^(?:\([-+]?\d(?:/\d)?\)|[-+]?\d(?:/\d)?)|\s?-\s?[1-4](?!\d|\.\d))"
_EXPONENT = rf"(?:{_SIGNED}|[23](?!\d|\.\d))"
_POWERED = rf"(?:{_ATOM}){_EXPONENT}?"
_OVER = rf"\s?[/·*]\s?(?:{_POWERED}|\({_POWERED}(?:[\s·*]{_POWERED})*\))"
_TIMES = rf"[\s.]?(?:{_ATOM}){_SIGNED}"
_UNIT = rf"(?:m?Ω\s(?:m|cm|mm)\^?2|{_POWERED}(?:{_OVER}|{_TIMES})*)"
_CELSIUS = r"\s?[°º˚]\s?C|\s?o\s?C|C"
_QUANTITY = re.compile(
    rf"(?<![\w.^/])(?P<value>{RANGE})(?:(?P<celsius>{_CELSIUS})(?![\w°^/])|(?P<gap>[\s-]?)(?P<unit>{_UNIT})(?![\w°^%]))"
)
_REPEATED_UNIT = re.compile(
    rf"(?<![\d.,])({NUMBER})\s?(°C|K|%|nm|μm|mm|h|min|eV|MPa|GPa|V|°)(\s?(?:-|–|to)\s?)(?={NUMBER}\s?\2)"
)
_NAMED_NUMBERS = re.compile(
    r"(?:Figs?\.?|Figures?|Tables?|Sections?|Eqs?\.?|Equations?|Refs?\.?|Steps?|Chapters?|No\.|Samples?|Scheme|Type)\s?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number or range with its unit, as printed at `[start, stop)`."""

    value: str
    unit: str
    kind: str
    start: int
    stop: int

    @property
    def text(self) -> str:
        """The canonical writing: one space before the unit, none before a per cent sign."""
        return f"{self.value}{'' if self.unit in ('%', '°') else ' '}{self.unit}"


def find_quantities(text: str) -> list[Quantity]:
    """Find numbers and ranges with units, left to right.

    A bare `C` is a temperature only when attached to an integer of 40 or more (`200C`), since
    `0.5C` is a rate of charge.
    """
    found: list[Quantity] = []
    if not any(map(str.isdigit, text)):
        return found
    for match in _QUANTITY.finditer(_merge_ranges(text)):
        value, unit, celsius = match["value"], match["unit"], match["celsius"]
        if _NAMED_NUMBERS.search(text[max(0, match.start() - 10) : match.start()]):
            continue
        if celsius is not None:
            if celsius == "C" and not (value.isdigit() and int(value) >= 40):
                continue
            unit = "°C"
        elif unit in _AMBIGUOUS_ALONE or (match["gap"] == "-" and not unit[0].isalpha()):
            continue
        first = re.match(_ATOM, unit)
        assert first is not None, unit
        simple = first[0] == unit
        kind = UNIT_KINDS[unit] if simple else "rate" if UNIT_KINDS[first[0]] == "temperature" else f"{UNIT_KINDS[first[0]]}*"
        found.append(Quantity(_tidy_value(value), tidy_unit(unit), kind, match.start(), match.end()))
    return found


def _merge_ranges(text: str) -> str:
    """Blank the first unit of `200 °C-300 °C`, so that the whole is one range; lengths stay."""
    return _REPEATED_UNIT.sub(lambda match: match[0].replace(match[2], " " * len(match[2]), 1), text)


def _tidy_value(value: str) -> str:
    """Print a range with a bare hyphen and keep ` to ` out of it."""
    value = re.sub(rf"(?<=[\d)])(?:\s*(?:–|—|~)\s*|\s*-\s*(?=\d)|\s+to\s+)(?={NUMBER})", "-", value)
    value = re.sub(r"(?<=10)\s?-(?=\d+$)", "^-", value) if "×" in value else value
    return re.sub(r"\s?([×±])\s?", r" \1 ", re.sub(r"\s+", " ", value)).strip()


def tidy_unit(unit: str) -> str:
    """Write a unit in one form: `W m^-1 K^-1`, also from `W m-1 K-1` and `C- 1`, which PDF leaves."""
    unit = re.sub(r"[°º˚]\s?C|^o\s?C$", "°C", unit.strip())
    unit = re.sub(r"\^\(([^)]*)\)", r"^\1", unit)
    unit = re.sub(r"(?<=[A-Za-zΩÅμ])\s?-\s?(?=[1-4])", "^-", unit)
    unit = re.sub(r"(?<=[A-Za-z])([23])\b", r"^\1", unit)
    return re.sub(r"\s+", " ", re.sub(r"\s?([/])\s?", r"\1", unit.replace("·", " ").replace("*", " ")))
