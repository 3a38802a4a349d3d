"""Chemical formulae, with the periodic table behind them."""

from __future__ import annotations

import re
from functools import lru_cache

ELEMENTS = frozenset([
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Sc",
    "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb",
    "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm",
    "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl",
    "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md",
    "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og",
])  # fmt: skip
# Formulae of one-letter symbols alone, which otherwise look like acronyms (SOFC, CVD).
CAPITAL_FORMULAE = frozenset([
    "CO", "NO", "HF", "KOH", "BN", "VN", "KF", "KI", "VO", "UO", "UN", "HCN", "KCN", "WC", "NH", "OH", "WS", "YSb", "CN",
])  # fmt: skip

_FORMULA_TOKEN = re.compile(r"(?<![\w^-])[A-Z(\[][A-Za-z0-9.()\[\]·+δ-]*[A-Za-z0-9)\]δ+]|(?<![\w^-])[A-Z][a-z]?\d")
_FORMULA_PART = re.compile(r"([A-Z][a-z]?)|(\d+(?:\.\d+)?(?:[-+][xyzδ])?|[xyzδ](?![a-z])|[-+]δ)|([()\[\]])|(·)")


def is_formula(token: str) -> bool:
    """Whether a token is a chemical formula: every symbol an element, brackets balanced, and not a plain word.

    A single element needs a number (`O2`); formulae of one-letter symbols need one too, or be known
    (`CO`, `KOH`), since `SOFC` would otherwise pass.
    """
    position, symbols, has_number, depth = 0, [], False, 0
    while position < len(token):
        part = _FORMULA_PART.match(token, position)
        if part is None:
            return False
        if part[1]:
            symbol = part[1] if part[1] in ELEMENTS else part[1][0]
            if symbol not in ELEMENTS or (len(symbol) < len(part[1]) and part[1][1] not in "xyz"):
                return False
            symbols.append(symbol)
            position += len(symbol)
            continue
        has_number |= bool(part[2])
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(part[3] or "", 0)
        if depth < 0:
            return False
        position = part.end()
    if depth or not symbols or len(token) < 2:
        return False
    if len(set(symbols)) == 1 and len(symbols) == 1:
        return has_number and token[-1] in "234568" and len(token) <= 3
    return has_number or any(len(symbol) == 2 for symbol in symbols) or token in CAPITAL_FORMULAE


@lru_cache(maxsize=512)
def find_formulae(text: str) -> tuple[tuple[str, int, int], ...]:
    """Find chemical formulae as `(formula, start, stop)`."""
    found = []
    for match in _FORMULA_TOKEN.finditer(text):
        token = match[0].rstrip(".")
        while token and token[-1] in ")]" and token.count("(") + token.count("[") < token.count(")") + token.count("]"):
            token = token[:-1]
        if is_formula(token):
            found.append((token, match.start(), match.start() + len(token)))
    return tuple(found)
