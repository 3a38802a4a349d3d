"""Normalised text (docs/data.md) and the mending of line breaks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.reading.normalise import comparable, count_words, dehyphenate, normalise


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("1.5\u00a0W\u2009m\u207b\u00b9\u202fK\u207b\u00b9", "1.5 W m^-1 K^-1"),
        ("cm\u00b2", "cm^2"),
        ("La\u2082O\u2083", "La2O3"),
        ("5\u201310 nm", "5-10 nm"),
        ("\u22125 °C", "-5 °C"),
        ("\u20135 °C", "-5 °C"),
        ("10^{-6} S", "10^-6 S"),
        ("\u00b5m", "\u03bcm"),
        ("e\ufb00ect of soft\u00adness", "effect of softness"),
        ("a\r\nb  c\n\n\n d", "a b c\n\nd"),
        ("Na\u2013air", "Na\u2013air"),
        ("", ""),
        ("\u200b\n\n \n", ""),
    ],
)
def test_each_character_has_one_writing(given_text, expected):
    assert normalise(given_text) == expected


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1 \n^{}-\u2013\u2212\u00b2\u2082\u00a0\ufb01\u00ad.,("), max_size=60))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("broken", "context", "mended"),
    [
        ("an ef- ficiency", "", "an efficiency"),
        ("Co- based alloys", "", "Co-based alloys"),
        ("high- temperature steel", "", "high-temperature steel"),
        ("high- and low-carbon", "", "high- and low-carbon"),
        ("nickel- iron foam", "the nickel and the iron", "nickel-iron foam"),
        ("a tem- perature", "the temperature", "a temperature"),
        ("a cross- section", "one cross-section", "a cross-section"),
        ("sus- tainably", "", "sustainably"),
    ],
)
def test_broken_words_are_joined_as_the_document_writes_them(broken, context, mended):
    assert dehyphenate(broken, count_words(f"{context} {broken}")) == mended


def test_comparable_ignores_case_articles_and_punctuation():
    assert comparable("The Band-gap, is: 1.55 eV.") == comparable("band gap is 1.55 eV")
