r"""LaTeX mathematics as readable text: `$10^{-6}$` to `10^-6`, `\frac{a}{b}` to `(a)/(b)`, `\alpha` to its letter.

Approximate by intent: commands without a symbol keep their name, so that nothing vanishes.
"""

from __future__ import annotations

import re
import unicodedata

_GREEK = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lamda", "mu", "nu", "xi",
    "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
]  # fmt: skip
SYMBOLS = {
    "times": "×", "cdot": "·", "pm": "±", "mp": "∓", "approx": "≈", "sim": "~", "simeq": "≈", "leq": "≤", "le": "≤",
    "geq": "≥", "ge": "≥", "neq": "≠", "ne": "≠", "ll": "≪", "gg": "≫", "propto": "∝", "infty": "∞", "partial": "∂",
    "nabla": "∇", "sum": "∑", "int": "∫", "prod": "∏", "to": "→", "rightarrow": "→", "leftarrow": "←", "Rightarrow": "⇒",
    "leftrightarrow": "↔", "degree": "°", "circ": "°", "in": "∈", "equiv": "≡", "ldots": "...", "dots": "...",
    "cdots": "...", "langle": "⟨", "rangle": "⟩", "hbar": "ħ", "dagger": "†", "otimes": "⊗", "oplus": "⊕", "cup": "∪",
    "cap": "∩", "subset": "⊂", "perp": "⊥", "parallel": "∥", "prime": "'", "ell": "ℓ", "quad": " ", "qquad": " ",
    "varepsilon": "ε", "varphi": "φ", "vartheta": "ϑ", "lambda": "λ", "Lambda": "Λ", "AA": "Å", "angstrom": "Å",
    "textdegree": "°", "micro": "μ", "Omega": "Ω", "mid": "|", "vert": "|", "gtrsim": "≳", "lesssim": "≲",
}  # fmt: skip
for _name in _GREEK:
    SYMBOLS[_name] = unicodedata.lookup(f"GREEK SMALL LETTER {_name.upper()}")
    SYMBOLS[_name.capitalize()] = unicodedata.lookup(f"GREEK CAPITAL LETTER {_name.upper()}")

_WRAPPERS = frozenset([
    "mathrm", "mathbf", "mathit", "mathsf", "mathcal", "mathbb", "mathfrak", "text", "textrm", "textbf", "textit", "textsf",
    "boldsymbol", "bm", "operatorname", "hat", "bar", "vec", "tilde", "dot", "ddot", "overline", "underline", "widehat",
    "widetilde", "mathop", "mbox", "rm", "bf", "it", "left", "right", "big", "Big", "bigg", "Bigg", "displaystyle",
    "limits", "nonumber", "middle", "bigl", "bigr", "Bigl", "Bigr", "tfrac", "cal",
])  # fmt: skip
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\[dt]?frac\s*{_GROUP}\s*{_GROUP}")
_ROOT = re.compile(rf"\\sqrt\s*{_GROUP}")
_LABEL = re.compile(r"\\(?:label|tag|ref|eqref)\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?(\s?)")
_PLAIN_SUBSCRIPT = re.compile(r"_(?:\{([^{}]*)\}|(\w))")
_SUPERSCRIPT = re.compile(r"\^\s*(?:\{([^{}]*)\}|(\w))")


def math_to_text(math: str) -> str:
    """Render one formula, given without its dollar signs, on one line."""
    math = _LABEL.sub("", re.sub(r"\\(?:begin|end)\{[a-z]+\*?\}(?:\{[lcr|]*\})?", " ", math))
    for _ in range(4):
        math = _FRACTION.sub(lambda match: f"({match[1]})/({match[2]})", math)
        math = _ROOT.sub(lambda match: f"√({match[1]})", math)
    math = re.sub(r"\\\\(?:\[[^\]]*\])?", "; ", math)
    math = re.sub(r"\\[,;:! ]|~", " ", math).replace("&", " ")
    math = re.sub(r"\^\s*(?:\{\s*)?\\(?:circ|degree)\s*\}?", "°", math)
    math = _COMMAND.sub(_command, math)
    math = re.sub(r"\\([%$&#_{}|])", r"\1", math)
    for _ in range(3):
        math = _SUPERSCRIPT.sub(lambda match: f"^{(match[1] or match[2] or '').strip()}", math)
        math = _PLAIN_SUBSCRIPT.sub(_subscript, math)
    return " ".join(math.replace("{", "").replace("}", "").split())


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name in SYMBOLS:
        # The blank that ends a letter's command is not printed; about an operator it helps reading.
        return SYMBOLS[name] + ("" if SYMBOLS[name].isalpha() and match.string[match.end() :][:1].isalnum() else match[2])
    return "" if name in _WRAPPERS else f"{name} "


def _subscript(match: re.Match[str]) -> str:
    """Subscripts stand inline after a letter of a formula (`La2O3`) and keep their mark where words would run together."""
    inside = (match[1] if match[1] is not None else match[2] or "").strip()
    return inside if re.fullmatch(r"[\d.xyzδ+\-]*", inside) else f"_{inside}"
