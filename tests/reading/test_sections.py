"""Sections are typed, merged and split without loss."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.reading.documents.document import Section
from quasitile.reading.sections import clean_title, declared_type, shape_sections, title_type
from quasitile.reading.sentences import split_sentences


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("A B S T R A C T", "abstract"),
        ("1. Introduction", "introduction"),
        ("2. Experimental / 2.1. Sample preparation", "methods"),
        ("Materials and Methods", "methods"),
        ("Results and discussion", "results"),
        ("IV. Discussion", "discussion"),
        ("5 Conclusions and outlook", "conclusion"),
        ("Crystal chemistry", ""),
        ("1.3.Methods of old", "methods"),
    ],
)
def test_titles_name_types(title, expected):
    assert title_type(clean_title(title)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("intro", "introduction"), ("materials|methods", "methods"), ("conclusions", "conclusion"), ("cases", ""), ("", "")],
)
def test_declared_types(value, expected):
    assert declared_type(value) == expected


def test_a_section_without_text_lends_its_type():
    shaped = shape_sections(
        [Section("Experimental", 1, "", ""), Section("Powders", 2, "", "Text of this."), Section("Steel", 1, "", "Iron.")],
        0,
        500,
    )
    assert [(section.title, section.type) for section in shaped] == [("Powders", "methods"), ("Steel", "other")]


def test_tiny_sections_of_one_type_merge():
    shaped = shape_sections(
        [Section("One", 1, "methods", "Short."), Section("Two", 1, "methods", "Too."), Section("End", 1, "results", "x")],
        50,
        500,
    )
    assert [(section.title, section.text) for section in shaped] == [("One / Two", "Short.\n\nToo."), ("End", "x")]


def test_long_sections_split_at_paragraphs():
    text = "\n\n".join(["word " * 19 + "end."] * 6)
    shaped = shape_sections([Section("Long", 1, "", text)], 0, 250)
    assert [section.title for section in shaped] == ["Long", "Long (part 2)", "Long (part 3)"]
    assert "\n\n".join(section.text for section in shaped) == text


@settings(deadline=None)
@given(
    st.lists(
        st.text(alphabet="ab. \n", max_size=400).map(
            lambda text: "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
        ),
        max_size=5,
    ),
    st.integers(100, 300),
)
def test_nothing_is_lost_and_nothing_is_too_long(texts, limit):
    sections = [Section(f"T{index}", 1, "", text.strip()) for index, text in enumerate(texts)]
    shaped = shape_sections(sections, 50, limit)
    assert "".join("".join(section.text.split()) for section in shaped) == "".join("".join(text.split()) for text in texts)
    assert all(len(section.text) <= limit for section in shaped)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It melts. It boils.", 2),
        ("See Fig. 3 for this. Then stop.", 2),
        ("Smith et al. Found it.", 1),
        ("It was held at 300 K. Then it cooled.", 2),
        ("J. Smith wrote 3.5 words. End", 2),
        ("One\n\nTwo", 2),
        ("", 0),
    ],
)
def test_sentences(text, expected):
    assert len(split_sentences(text)) == expected


@settings(deadline=None)
@given(st.text(alphabet="aB .!?\n3", max_size=80))
def test_sentences_cover_the_text_in_order(text):
    sentences = split_sentences(text)
    assert all(text[sentence.start : sentence.stop] == sentence.text for sentence in sentences)
    assert "".join("".join(sentence.text.split()) for sentence in sentences) == "".join(text.split())
