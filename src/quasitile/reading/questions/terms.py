"""Rules on words: definitions and acronyms."""

from __future__ import annotations

import re

from quasitile.reading.questions.candidate import ARTICLE, Candidate, Passage
from quasitile.reading.questions.phrases import clip, inside_sentence, is_plural, noun_phrase, strip_lead, without_article
from quasitile.reading.sentences import Sentence

MAX_EXPANSION_CHARACTERS = 400  # before an acronym: more than its words ever take
MAX_FORMULA_CHARACTERS = 300  # of a sentence with the formula whose symbols it explains
_LONG_WORDS = 8  # a longer definition is asked the other way round, so that the answer stays short
_IS = re.compile(
    r"^(?P<article>(?:A|An|The)\s+)?(?P<term>[A-Za-z][\w'()-]*(?:\s[\w'()-]+){0,4}?)\s"
    r"(?P<verb>is defined as|are defined as|refers to|is|are)\s(?P<meaning>.+)$"
)
_KIND = re.compile(
    r"^(?:an?|the)\s(?:\S+\s){1,5}?(?:that|which|of|in|with|for|to|used|made|whose|where|by|between|from|based|consisting|"
    r"containing)\b"
)
_PLURAL_KIND = re.compile(
    r"^(?:[\w-]+\s){0,3}[\w-]+s\s(?:that|which|whose|made of|composed of|consisting of|formed by|used to|used for)\b"
)
_EVALUATION = re.compile(
    r"^(?:an?|the)?\s?(?:\w+ly\s)?(?:promising|important|key|good|simple|common|popular|major|critical|"
    r"potential|useful|powerful|"
    r"significant|much|far|bigger|smaller|serious|crucial|possible|necessary|suitable|effective|attractive|great|viable|"
    r"challenge|result|function|consequence|main|most|best|only|first|second|same|reason|way|number|lot|case|kind of|sum|"
    r"average|ideal|widely|well|new|novel|large|small|high|low|strong|very|more|less|clear|direct|indication|sign|part of|"
    r"rather|active|practical|inherent|vital|essential|candidate|problem|issue|factor|measure of the|few|"
    r"little|bit|excellent|fundamental|higher|lower|"
    r"so|not|also|thus|still|many|sometimes|often|always|among|some|several|all|both|two|three|usually|generally|other)\b",
    re.IGNORECASE,
)
_SPECIFIC = re.compile(
    r"\b(?:reason|result|aim|purpose|goal|difference|advantage|disadvantage|sample|samples|problem|value|step|"
    r"example|work|study|"
    r"challenge|answer|idea|question|approach|objective|point|issue|way|conclusion|factor|focus|here|now|"
    r"choice|consequence|drawback|"
    r"obtained|observed|measured|present|figure|table|used|case|trend|task)\b",
    re.IGNORECASE,
)
_CALLED = re.compile(
    r"^(?P<meaning>(?:A|An|The) [^,;:]{8,110}?) (?P<be>is|are) (?:\w+ly |also |often |then |sometimes )?"
    r"(?:called|termed|named|known as|referred to as) (?:(?:as )?(?:an?|the) )?(?:so-called )?['\"]?"
    r"(?P<term>[A-Za-z][\w' -]{2,50}?)['\"]?(?=[,.;]|\s(?:and|or|which|because|since|if|when|where|in|for|as|by)\b|\s[(\[]|$)"
)
_POINTS = re.compile(r"\b(?:this|these|those|its?|they|their|we|our|above|following|such|here|same)\b|[\[\]()]", re.IGNORECASE)
_WHERE = re.compile(r"\b[Ww]here\s(?=\S+\s(?:is|denotes|represents|stands for|refers to)\s)")
_SYMBOL = re.compile(
    r"(?:(?<=[Ww]here\s)|[,;]\s(?:and\s)?|\sand\s)(?P<symbol>[A-Za-zα-ωΑ-ΩΔ∆][\w()*]{0,6}) "
    r"(?:is|denotes|represents|stands for|refers to) (?P<meaning>(?:an?|the) [^,;.:=]{4,70}?)"
    r"(?=[,;.]|\sand\s\S+\s(?:is|denotes|represents|stands)\s|\s\()"
)
_ACRONYM = re.compile(r"\((?P<short>[A-Z][A-Za-z0-9-]{1,8})(?:[;,]\s[^()]{1,30})?\)")


def definition(passage: Passage) -> list[Candidate]:
    """`X is a Y that ...`, `X is defined as Y`, `X refers to Y`, `Y is called X`, `where X is Y`."""
    found = []
    for sentence in passage.sentences:
        found += [*_called(passage, sentence), *_symbols(sentence)]
        if not 6 <= sentence.num_words <= 45:
            continue
        match = _IS.match(strip_lead(sentence.text))
        if match is None or (match["verb"] in ("is", "are") and (match["article"] or "").strip() == "The"):
            continue
        term, meaning = noun_phrase(re.sub(r"\s\([^()]*\)$", "", match["term"]), 5), clip(match["meaning"], 30)
        if (
            not term
            or not meaning
            or _SPECIFIC.search(term)
            or re.search(r"\s(?:a|an|the)\s", term)
            or len(meaning.split()) < 3
        ):
            continue
        plain = match["verb"] in ("is", "are")
        if match["verb"] == "refers to" and not re.match(r"(?:an?|the)\s", meaning):
            continue
        fits = _KIND if match["verb"] == "is" else _PLURAL_KIND
        if plain and (not fits.match(meaning) or _EVALUATION.match(meaning)):
            continue
        article = (
            "" if match["article"] is None or match["article"].strip() == "The" else f"{match['article'].strip().lower()} "
        )
        found.append(_definition(inside_sentence(term, passage.text), article, meaning, plain, sentence))
    return found


def _definition(term: str, article: str, meaning: str, plain: bool, sentence: Sentence) -> Candidate:
    be = "are" if is_plural(term) else "is"
    quality = 0.8 if plain else 0.9
    if len(meaning.split()) <= _LONG_WORDS:
        questions = (f"What {be} {article}{term}?", f"How {be} {article}{term} defined?", f"What does the term '{term}' mean?")
        accepted = (meaning, without_article(meaning))
        return Candidate("definition", questions, meaning, sentence, f"So {article}{term} {be} {meaning}.", quality, accepted)
    questions = (
        f"Which term means '{meaning}'?",
        f"What is the name for this: {meaning}?",
        f"What is described as '{meaning}'?",
    )
    accepted = (term, f"{article}{term}", term.removesuffix("s"))
    return Candidate("definition", questions, term, sentence, f"So the term is {term}.", quality, accepted)


def _called(passage: Passage, sentence: Sentence) -> list[Candidate]:
    """`Y is called X`."""
    match = _CALLED.match(strip_lead(sentence.text))
    if match is None or sentence.num_words > 45:
        return []
    meaning, term = match["meaning"], noun_phrase(match["term"], 4)
    if not term or _SPECIFIC.fullmatch(term) or _POINTS.search(meaning) or len(meaning.split()) > 16:
        return []
    meaning = inside_sentence(meaning, passage.text)
    questions = (
        f"What {match['be']} {meaning} called?",
        f"Which term is used for {meaning}?",
        f"What is the name for {meaning}?",
    )
    return [Candidate("definition", questions, term, sentence, f"So the term is {term}.", 0.9, (term, term.removesuffix("s")))]


def _symbols(sentence: Sentence) -> list[Candidate]:
    """`where X is Y and Z is W`: what the symbols of a formula stand for."""
    where = _WHERE.search(sentence.text)
    found = []
    if where and len(sentence.text) > MAX_FORMULA_CHARACTERS:  # the explanation holds without the formula
        start = sentence.start + where.start()
        sentence = Sentence(sentence.text[where.start() :], start, sentence.stop)
        where = _WHERE.search(sentence.text)
    for match in _SYMBOL.finditer(sentence.text, where.end()) if where else ():
        symbol, meaning = match["symbol"], noun_phrase(match["meaning"], 10)
        if not meaning or len(meaning.split()) < 2 or (symbol.islower() and len(symbol) > 2) or symbol in ("a", "it", "I"):
            continue
        questions = (
            f"What does the symbol {symbol} stand for in {ARTICLE}?",
            f"In {ARTICLE}, which quantity does {symbol} denote?",
            f"What is meant by {symbol} in {ARTICLE}?",
        )
        accepted = (meaning, without_article(meaning))
        conclusion = f"So {symbol} stands for {meaning}."
        found.append(Candidate("definition", questions, meaning, sentence, conclusion, 0.85, accepted))
    return found


def acronym(passage: Passage) -> list[Candidate]:
    """`long form (LF)` whose initials agree."""
    found = []
    for sentence in passage.sentences:
        for match in _ACRONYM.finditer(sentence.text):
            short = match["short"]
            long = expand_acronym(sentence.text[: match.start()].rstrip(), short.removesuffix("s"))
            if not long:
                continue
            long = inside_sentence(long, passage.text) if sentence.text.startswith(long) else long
            questions = (
                f"What does {short} stand for?",
                f"What is the full form of the abbreviation {short}?",
                f"Which words does {short} abbreviate?",
                f"Write out the abbreviation {short} in full.",
            )
            accepted = (long, long.replace("-", " "), long.removesuffix("s"))
            found.append(Candidate("acronym", questions, long, sentence, f"So {short} stands for {long}.", 0.95, accepted))
    return found


def expand_acronym(before: str, short: str) -> str:
    """The words at the end of `before` that `short` abbreviates, or nothing.

    Every capital of the acronym starts a word (or a part after a hyphen), in order; the first one
    starts the phrase. Short words such as `of` may be passed over.
    """
    letters = [char.lower() for char in short if char.isalpha()]
    if len(letters) < 2 or sum(char.isupper() for char in short) < 2:
        return ""
    before = before[-MAX_EXPANSION_CHARACTERS:]
    words = list(re.finditer(r"[A-Za-z0-9'\u2013-]+", before))[-(len(letters) + 3) :]
    for first in range(len(words) - 1, -1, -1):
        span = before[words[first].start() :]
        if re.search(r"[.;:,()\[\]]", span):
            return ""
        starts = [part[0].lower() for part in re.findall(r"[A-Za-z0-9]+", span)]
        if starts[0] == letters[0] and starts[-1] == letters[-1] and _in_order(letters, starts, span):
            return "" if len(span) <= len(short) + 2 else span
    return ""


def _in_order(letters: list[str], starts: list[str], span: str) -> bool:
    """Whether the letters are the initials in order; every long word must be used."""
    parts = re.findall(r"[A-Za-z0-9]+", span)
    position = 0
    for start, part in zip(starts, parts, strict=True):
        if position < len(letters) and start == letters[position]:
            position += 1
        elif part.lower() not in ("of", "and", "the", "in", "for", "to", "on", "by", "a", "with"):
            return False
    return position == len(letters)
