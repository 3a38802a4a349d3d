"""What has been asked so far, so that nothing is asked twice: within a document, and across all of them.

What concerns the whole collection lies in a temporary SQLite database, so that memory does not
grow with the number of sections.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

import numpy as np
from datasketch import MinHash
from rapidfuzz import fuzz

from quasitile.reading.normalise import comparable
from quasitile.reading.questions.candidate import ARTICLE, Candidate

NEAR_DUPLICATE = 90  # similarity in per cent of two questions with the same answer
SAME_SENTENCE = 0.8  # Jaccard similarity of the word triples of two sentences of different documents
_BANDS, _ROWS = 8, 4
_SKETCH = MinHash(num_perm=_BANDS * _ROWS, seed=1, hashfunc=crc32)  # used again and again: its permutations are costly
# Kinds that ask about one word of a sentence among several: a sentence bears many of them.
_CHOOSING = frozenset(("true_false", "choice"))


class Asked:
    """Questions asked before; `begin` before each document."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.store = sqlite3.connect("")  # on disk, private, gone with the connection
        self.store.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-32000;"
            "CREATE TABLE answers (key INTEGER PRIMARY KEY, answer INTEGER) WITHOUT ROWID;"
            "CREATE TABLE facts (key INTEGER PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TABLE signatures (id INTEGER PRIMARY KEY, document TEXT, fact INTEGER, signature BLOB);"
            "CREATE TABLE bands (band INTEGER, id INTEGER, PRIMARY KEY (band, id)) WITHOUT ROWID;"
        )
        self.begin("")

    def close(self) -> None:
        """Remove the database."""
        self.store.close()

    def begin(self, document: str) -> None:
        """Forget what matters inside one document only."""
        self.document = document
        self.own_answers: dict[int, int] = {}
        self.questions_by_answer: dict[str, list[str]] = {}

    def repeated(self, candidate: Candidate) -> str:
        """Why a candidate repeats an earlier one, or nothing."""
        question, key, answer = self._keys(candidate)
        earlier = self.own_answers.get(key) if _scoped(candidate) else self._answer(key)
        if earlier is not None:
            return "near-duplicate" if earlier == _number(answer) else "contradicts an earlier question"
        for earlier_question in self.questions_by_answer.get(answer, ()):
            if fuzz.token_sort_ratio(question, earlier_question, score_cutoff=NEAR_DUPLICATE):
                return "near-duplicate"
        if candidate.kind == "expert":
            return ""
        if self.store.execute("SELECT 1 FROM facts WHERE key = ?", (_number(*_fact(candidate)),)).fetchone():
            return "same fact asked already"
        return "near-duplicate in another document" if self._elsewhere(candidate) else ""

    def add(self, candidate: Candidate) -> None:
        """Remember a candidate that became a question."""
        question, key, answer = self._keys(candidate)
        if _scoped(candidate):
            self.own_answers[key] = _number(answer)
        else:
            self.store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, _number(answer)))
        self.questions_by_answer.setdefault(answer, []).append(question)
        self.kinds[candidate.kind] += 1
        evidence, fact = _fact(candidate)
        self.store.execute("INSERT OR IGNORE INTO facts VALUES (?)", (_number(evidence, fact),))
        signature = _signature(evidence)
        row = (self.document, _number(fact), signature.tobytes())
        number = self.store.execute("INSERT INTO signatures (document, fact, signature) VALUES (?, ?, ?)", row).lastrowid
        self.store.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in _bands(signature)])

    def _answer(self, key: int) -> int | None:
        row = self.store.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _elsewhere(self, candidate: Candidate) -> bool:
        """Whether another document's sentence, nearly the same, was asked for the same answer."""
        evidence, fact = _fact(candidate)
        signature = _signature(evidence)
        bands = _bands(signature)
        rows = self.store.execute(
            "SELECT DISTINCT signature FROM bands CROSS JOIN signatures USING (id) "
            f"WHERE band IN ({','.join('?' * len(bands))}) AND fact = ? AND document != ? LIMIT 100",
            (*bands, _number(fact), self.document),
        )
        return any(np.mean(np.frombuffer(other, np.uint32) == signature) >= SAME_SENTENCE for (other,) in rows)

    @staticmethod
    def _keys(candidate: Candidate) -> tuple[str, int, str]:
        """The question without its article, the key that no other question may have, and the answer, made comparable."""
        question = comparable(candidate.questions[0].replace(ARTICLE, ""))
        return question, _number(" ".join(sorted(question.split()))), comparable(candidate.answer)


def _scoped(candidate: Candidate) -> bool:
    """Whether the question holds for its document only: it names the article, or an expert wrote it."""
    return ARTICLE in candidate.questions[0] or candidate.kind == "expert"


def _fact(candidate: Candidate) -> tuple[str, str]:
    """The sentence, and what it is asked for: true or false asks for its one value, as a question on that value does."""
    answer = candidate.answer
    if candidate.kind in _CHOOSING:
        answer = candidate.asked_for or answer
    return comparable(candidate.evidence.text), comparable(answer)


def _number(*parts: str) -> int:
    """Sixty-three bits that stand for a text."""
    return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest()) >> 1


@lru_cache(maxsize=512)
def _signature(evidence: str) -> np.ndarray:
    """MinHash values of a sentence's word triples, 32 bits each."""
    words = evidence.split()
    triples = {" ".join(words[index : index + 3]).encode() for index in range(max(1, len(words) - 2))}
    _SKETCH.clear()
    _SKETCH.update_batch(list(triples))
    return (np.asarray(_SKETCH.hashvalues, np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _bands(signature: np.ndarray) -> list[int]:
    """One number a band of four values: sentences alike share one with high probability."""
    return [
        int.from_bytes(blake2b(bytes([band]) + rows.tobytes(), digest_size=8).digest()) >> 1
        for band, rows in enumerate(signature.reshape(_BANDS, _ROWS))
    ]
