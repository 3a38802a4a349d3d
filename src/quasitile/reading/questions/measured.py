"""Which words of a sentence name what a quantity measures: `a tensile strength of 500 MPa`, `Tm = 250 °C`, `50 nm thick`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from quasitile.reading.formulae import ELEMENTS
from quasitile.reading.quantities import NUMBER, RANGE, UNIT_KINDS, Quantity
from quasitile.reading.questions.lexicon import EPONYMS, MEASURES, NUMBERS_ALONE, PROPERTIES, SYMBOLS

MAX_NAME_WORDS = 5
MAX_HEADS_TRIED = 2  # nouns to the left of a quantity, the nearest first
_ADJECTIVES = {
    "thick": "thickness", "long": "length", "wide": "width", "deep": "depth", "tall": "height", "high": "height",
    "in diameter": "diameter", "in thickness": "thickness", "in length": "length", "in width": "width",
    "in height": "height", "in size": "size", "in depth": "depth", "in radius": "radius",
}  # fmt: skip


def _plural(noun: str) -> str:
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return "radii" if noun == "radius" else f"{noun}es" if noun.endswith(("s", "x", "ch")) else f"{noun}s"


_HEADS = {*MEASURES, *NUMBERS_ALONE, *(name.split()[-1] for name in PROPERTIES)}
SINGULARS = {_plural(head): head for head in _HEADS}
_WORD = re.compile(r"(?<![\w-])[A-Za-z][\w'-]*")
# "More than" and "up to" bound a value; they belong to the answer.
BOUND = r"less than|lower than|more than|greater than|higher than|over|at least|at most|up to|below|above|[<>≤≥]"
ABOUT = (
    r"(?:about|around|approximately|ca\.|circa|roughly|nearly|near|almost|close to|as high as|as low as|only|just|[~≈∼]|"
    r"equal to|of|at|to)"
)
_EASED = rf"(?:{ABOUT}\s?)*(?P<bound>(?:{BOUND})\s?)?"
IS = (
    r"(?:(?:is|was|are|were|be|being|remains?|remained|stays?|stayed|reach(?:es|ed)?|equals?|"
    r"amounts?|amounted|averag(?:es|ed))|"
    r"(?:(?:is|was|were|are|can be|could be) |then |also |thus |always |therefore )*(?:found|measured|determined|calculated|"
    r"estimated|reported|observed|obtained|set|kept|fixed|maintained|held|chosen|adjusted|taken|limited|reduced|raised|controlled|varied|"
    r"increased|decreased|assumed|considered|selected|recorded)|"
    r"(?:in|de)creas(?:es|ed|ing)|dropp?(?:s|ed)|f[ae]lls?|ris(?:es|ed)|rose|changed|var(?:ies|ied|ying)|rang(?:es|ed|ing))"
    r"(?: \w+ly)?(?: to be| as| at| to| from| in)?"
)
_RANGE = (
    r"(?:(?:in|within|over) (?:the|a) (?:\w+ )?range(?: of| from| between)?|rang(?:ing|ed|es) (?:from|between)|from|between)"
)
_SYMBOL = (
    r"(?:\s?\([^()]{1,25}\))?(?:,?\s(?:[A-Za-zα-ωΔ∆]|[A-Z][a-z]|[A-Za-zα-ωΔ∆]_?[A-Z0-9]\w{0,3}|[A-Za-zα-ωΔ∆]_\w+)(?![\w-]),?)?"
)
_BEARER = r"(?P<bearer>[^,;:]{2,80}?)"
_DIRECT = re.compile(rf"{_SYMBOL}\s?(?:{IS}\s|[:=(]\s?|of\s|up to\s)?(?:{_RANGE}\s)?{_EASED}")
_BORNE = re.compile(rf"{_SYMBOL} (?:of|for|in|on|at|between|through) {_BEARER} {IS}\s(?:{_RANGE}\s)?{_EASED}")
_GOES_ON = re.compile(rf"\s?(?:,|and|or|,\s?and|,\s?or|to|&|/|vs\.?)\s?(?:then |finally )?{_EASED}")
_LIST_BEFORE = re.compile(
    rf"(?<![\w.^/-])(?:(?:{NUMBER},\s)*{NUMBER},?\s(?:and|or)|between\s{NUMBER}\sand|from\s{NUMBER}\sto)\s$"
)
_DERIVED = re.compile(
    r"(?:calculated|determined|estimated|obtained|taken|selected|recorded|measured|observed|found|reported) from\s"
)
_CHANGES = re.compile(
    r"(?:increas|decreas|drop|f[ae]ll|rose|ris|reduc|chang|shift|improv|rais|lower|grow|grew|declin)\w*(?: from)?\s?$"
)
# Nouns that say nothing of what is measured unless another word goes before them.
_EMPTY = frozenset([
    "range", "level", "position", "difference", "increase", "decrease", "amount", "degree", "constant", "rise",
    "production", "quantity", "improvement", "reduction", "number", "window", "interval", "deviation", "error",
    "share", "portion", "change", "mass", "step", "point",
])  # fmt: skip
_EQUALS = re.compile(r"(?<![\w^_./)])(?P<symbol>[A-Za-zα-ωΑ-ΩΔ∆][\w*'/-]{0,9}(?:\([\w/]{1,6}\))?)\s?[=≈]\s?[~<>]?\s?$")
_AFTER = re.compile(
    rf"^[\s-](?:(?P<adjective>{'|'.join(_ADJECTIVES)})(?![\w-])|(?P<words>[A-Za-z][\w'-]*(?:\s[A-Za-z][\w'-]*){{0,2}}))"
)
_SPREAD = re.compile(r"(?<=\w) (?:range|level|limit|interval|window|step)$")  # has the unit of what stands before it
_ALONE = re.compile(
    rf"(?<![\w.^/(\[-])(?P<value>{RANGE})"
    rf"(?![\w%°^/]|[.,:]\d|\s?[-–]\s?\d|\s?°|\s?[×x] ?\d|\s?(?:[A-Z°Å%]|[a-z]{{1,3}}[\^/-]?\d))"
)
_TOO_MUCH = re.compile(
    r"\b(?:and|which|that|while|where|when|with|than|by|is|are|was|were|has|have|had|show(?:s|ed)|after|before|using|or|respectively)\b"
)
_STOPS = frozenset([
    "a", "an", "the", "of", "in", "for", "and", "or", "to", "is", "are", "was", "were", "by", "with", "at", "on",
    "from", "than", "as", "between", "which", "where", "per", "that", "this", "these", "its", "their", "our", "has",
    "have", "had", "shows", "showed", "shown", "under", "over", "using", "into", "when", "while", "if", "via",
    "after", "before", "during", "without", "within", "through", "achieved", "exhibits", "exhibited", "reached",
    "gives", "gave", "given", "be", "been", "being", "can", "could", "will", "would", "may", "might", "not",
    "respectively", "both", "each", "all", "no", "until", "different", "various", "several", "two", "three", "four",
    "five", "only", "also", "about", "upon", "having", "indicates", "reveals", "showing", "whereby", "contain",
    "contained", "contains", "containing", "provide", "provides", "provided", "deliver", "delivers", "delivered",
    "exhibit", "display", "displays", "displayed", "show", "possess", "possesses", "maintain", "maintains",
    "attain", "obtain", "achieve", "achieves", "reach", "reaches", "keep", "keeps", "need", "needs", "require",
    "requires", "use", "used", "include", "includes", "yielding", "giving", "reaching", "against", "versus", "vs",
    "because", "since", "then", "thus", "so", "it", "they", "we", "he", "but",
])  # fmt: skip
_JUDGING = frozenset([
    "high", "higher", "low", "lower", "large", "larger", "small", "smaller", "good", "better", "excellent",
    "superior", "enhanced", "improved", "remarkable", "constant", "similar", "certain", "corresponding",
    "resulting", "obtained", "measured", "reported", "respective", "very", "same", "fixed", "given", "such", "new",
    "typical", "different", "negligible", "significant", "desired", "slight", "great", "greater", "considerable",
    "reduced", "increased", "decreased", "smallest", "largest", "highest", "lowest", "best", "comparable", "quite",
    "rather", "more", "less", "other", "another", "any", "some", "one", "promising", "impressive", "outstanding",
])  # fmt: skip


_NO_SYMBOLS = _STOPS | {"n", "i", "j", "hkl", "bar", "bars", "scale"}


@dataclass(frozen=True)
class Measured:
    """A quantity and what it measures.

    `[start, stop)` is what a blank would take the place of, a bound or a whole list included; `how` is the way it is said:
    `of` (name of value), `is` (name is value), `borne` (name of bearer is value) or `other`. `[name_start, name_stop)` is the
    name as it stands, with judging words before it. `chain` numbers the values of a list, counting from 0.
    """

    name: str
    quantity: Quantity
    answer: str
    start: int
    stop: int
    how: str
    name_start: int = 0
    name_stop: int = 0
    bearer: str = ""
    chain: int = 0


def find_measured(text: str, quantities: list[Quantity]) -> list[Measured]:
    """What each quantity of a sentence measures, where the words about it say so, from left to right."""
    if not any(map(str.isdigit, text)):
        return []
    heads = [(match.start(), match.end()) for match in _WORD.finditer(text) if _is_head(match[0])]
    found: list[Measured] = []
    for quantity in sorted([*quantities, *_numbers(text, quantities)], key=lambda quantity: quantity.start):
        measured = _read(text, quantity, heads)
        if measured is None and found and found[-1].how != "after":
            measured = _next_in_list(text, quantity, found[-1])
        if measured is None and quantity.kind != "number":
            measured = _read_after(text, quantity)
        if measured is not None:
            found.append(measured)
    return _ranges_joined(text, found)


def _is_head(word: str) -> bool:
    """Whether a noun names what may be measured."""
    return word in SYMBOLS or word.lower() in _HEADS or word.lower() in SINGULARS


def _numbers(text: str, quantities: list[Quantity]) -> list[Quantity]:
    """Numbers without a unit, which some properties have."""
    taken = [(quantity.start, quantity.stop) for quantity in quantities]
    return [
        Quantity(match["value"], "", "number", match.start(), match.end())
        for match in _ALONE.finditer(text)
        if not any(start < match.end() and match.start() < stop for start, stop in taken)
    ]


def _read(text: str, quantity: Quantity, heads: list[tuple[int, int]]) -> Measured | None:
    """The name to the left of a quantity."""
    before = text[: quantity.start]
    listed = _LIST_BEFORE.search(before) if quantity.unit and before.endswith(("and ", "or ", "to ")) else None
    start = listed.start() if listed else quantity.start
    equals = _EQUALS.search(text[:start][-24:]) if text[:start].rstrip(" ~<>").endswith(("=", "≈")) else None
    if equals and equals["symbol"].lower() not in _NO_SYMBOLS:
        place = max(0, start - 24) + equals.start("symbol")
        stop = place + len(equals["symbol"])
        return Measured(equals["symbol"], quantity, text[start : quantity.stop], start, quantity.stop, "other", place, stop)
    left = [head for head in heads if head[1] <= start][-MAX_HEADS_TRIED:]
    for head_start, head_stop in reversed(left):
        between = text[head_stop:start]
        if len(between) > 140:
            break
        match, how = _DIRECT.fullmatch(between), "of"
        if match is None:
            match, how = _BORNE.fullmatch(between), "borne"
        if match is None or (how == "borne" and _TOO_MUCH.search(_one_bearer(match["bearer"], text))):
            continue
        name_start, name = _name(text, head_start, head_stop)
        if name.endswith(" range") and name.split()[-2].endswith("s"):
            continue  # `the rates of such alloys range between`: a verb
        if (name in _EMPTY and how != "borne") or not fits(name, quantity) or _DERIVED.search(between):
            continue
        if how == "of" and not re.match(r"\s?(?:\([^()]*\))?\s?of\s", between):
            how = "is" if re.match(rf"{_SYMBOL}\s{IS}\s", between, re.IGNORECASE) else "other"
        begin = head_stop + match.start("bound") if match["bound"] else start
        answer = text[begin : quantity.stop]
        bearer = match["bearer"] if how == "borne" else ""
        return Measured(name, quantity, answer, begin, quantity.stop, how, name_start, head_stop, bearer)
    return None


def _one_bearer(bearer: str, text: str) -> str:
    """What has the property; of several, whose values come respectively, one."""
    return bearer.replace(" and ", " ") if "respectively" in text else bearer


def _read_after(text: str, quantity: Quantity) -> Measured | None:
    """The name to the right: `75 % relative humidity`, `50 nm thick`, `2 mm in diameter`."""
    match = _AFTER.match(text[quantity.stop :])
    if match is None:
        return None
    if match["adjective"]:
        name, stop = _ADJECTIVES[match["adjective"]], match.end("adjective")
        if quantity.kind != "length":
            return None
    else:
        words = match["words"].split()
        size = next((index for index, word in enumerate(words, 1) if _is_head(word)), 0)
        if not size or any(word.lower() in _STOPS for word in words[:size]):
            return None
        name, stop = _written(words[:size]), match.start("words") + len(" ".join(words[:size]))
        if not fits(name, quantity):
            return None
    listed = _LIST_BEFORE.search(text[: quantity.start])
    begin = listed.start() if listed else quantity.start
    place = quantity.stop + match.start() + 1
    return Measured(name, quantity, text[begin : quantity.stop], begin, quantity.stop, "after", place, quantity.stop + stop)


def _next_in_list(text: str, quantity: Quantity, last: Measured) -> Measured | None:
    """The same name for the next value of a list."""
    match = _GOES_ON.fullmatch(text[last.stop : quantity.start]) if 0 <= quantity.start - last.stop < 30 else None
    if match is None or quantity.kind != last.quantity.kind:
        return None
    begin = last.stop + match.start("bound") if match["bound"] else quantity.start
    answer = text[begin : quantity.stop]
    return Measured(
        last.name,
        quantity,
        answer,
        begin,
        quantity.stop,
        last.how,
        last.name_start,
        last.name_stop,
        last.bearer,
        last.chain + 1,
    )


def _ranges_joined(text: str, found: list[Measured]) -> list[Measured]:
    """`between 10 % and 78 %` is one value."""
    joined: list[Measured] = []
    for measured in found:
        last = joined[-1] if joined else None
        before = text[: last.start].rstrip() if last else ""
        word = before.rpartition(" ")[2] if before.endswith(("between", "from")) else ""
        between = text[last.stop : measured.start].strip() if last else ""
        ranges = between == "to" and not _CHANGES.search(before)
        if last and measured.chain == 1 and (ranges or (word, between) == ("between", "and")):
            begin = text.rindex(word, 0, last.start) if word else last.start
            joined[-1] = Measured(
                last.name, measured.quantity, text[begin : measured.stop], begin, measured.stop, last.how,
                last.name_start, last.name_stop, last.bearer,
            )  # fmt: skip
        else:
            joined.append(measured)
    return joined


def _name(text: str, head_start: int, head_stop: int) -> tuple[int, str]:
    """Where the name of a property begins and the name, judging words left out; nothing where it has no sense alone."""
    words = [text[head_start:head_stop]]
    start = head_start
    while len(words) < MAX_NAME_WORDS:
        match = re.search(r"(?<![^\s(\[\"'])([A-Za-zα-ωΔ∆][\w'/-]*)\s$", text[max(0, start - 40) : start])
        if match is None or match[1].lower() in _STOPS or match[1] in UNIT_KINDS:
            break
        words.insert(0, match[1])
        start -= len(match[0])
    return start, _written(words)


def _written(words: list[str]) -> str:
    """Words as a name inside a sentence: judging words at the front left out, the last in the singular."""
    while len(words) > 1 and (words[0].lower() in _JUDGING or words[0].lower().endswith("ly")):
        words = words[1:]
    last = words[-1]
    words = [*words[:-1], SINGULARS.get(last.lower(), last) if last.lower() in SINGULARS else last]
    name = " ".join(words)
    common = words[0][1:].islower() and words[0] not in EPONYMS and words[0] not in ELEMENTS and name not in SYMBOLS
    return name[0].lower() + name[1:] if common else name


@lru_cache(maxsize=4096)
def _kinds(name: str) -> tuple[str, ...]:
    name = _SPREAD.sub("", name)
    known = next((each for each in sorted(PROPERTIES, key=len, reverse=True) if name.lower().endswith(each)), "")
    last = name.split()[-1]
    return tuple((PROPERTIES[known] if known else MEASURES.get(last.lower(), SYMBOLS.get(last, ""))).split())


def fits(name: str, quantity: Quantity) -> bool:
    """Whether a property of this name may have a quantity of this kind."""
    last = name.split()[-1].lower()
    if quantity.kind == "number":
        return last in NUMBERS_ALONE
    kinds = _kinds(name)
    return not kinds or quantity.kind.rstrip("*") in kinds
