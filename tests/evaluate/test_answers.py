import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quasitile.evaluate.answers import answer_report, ask, exact_match, normalise, token_f1
from quasitile.evaluate.batches import window_length
from quasitile.evaluate.generation import Answer, answer_limit

SAME = [
    ("1.55 eV", "1.55 ev"),
    ("1.55eV", "1.55 eV."),
    ("The band gap", "band gap"),
    ("1,200 mAh", "1200 mAh"),
    ("−3 °C", "-3 °C"),
    (".5 V", "0.5 V"),
    ("13%", "13 percent"),
    ("12.8–13.0", "12.8 - 13.0"),
    ("12.8 to 13.0", "12.8-13.0"),
    ("1.2 × 10^-3 S/cm", "1.2x10^-3 S/cm"),
    ("10⁻³", "10^-3"),
    ("40 cm² C⁻¹", "40 cm^2 C^-1"),
    ("cm^2", "cm2"),
    ("X-ray diffraction (XRD)", "xray diffraction XRD"),
    ("µm", "μm"),
    ("  An  apple ", "apple"),
]
DIFFERENT = [
    ("1.5", "15"),
    ("-3", "3"),
    ("10^3", "103"),
    ("1,2", "12"),
    ("12.8-13.0", "12.813.0"),
    ("10^-3", "10^3"),
    ("13%", "13"),
    ("5 A", "5"),
    ("5 A", "5 V"),
    ("3 K", "3"),
    ("", "the gap"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_spelling_does_not_matter(first, second):
    assert exact_match(first, [second]) == 1
    assert token_f1(first, [second]) == 1


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_numbers_and_units_do(first, second):
    assert exact_match(first, [second]) == 0


def test_scores_take_the_best_accepted_answer():
    assert exact_match("1.55", ["1.55 eV", "1.55"]) == 1
    assert token_f1("lithium iron phosphate", ["iron", "iron phosphate"]) == pytest.approx(0.8)
    assert token_f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert token_f1("dog", ["cat"]) == 0
    assert token_f1("cat", []) == exact_match("cat", []) == 0


WORDS = st.text(alphabet="abz A.-,^%0159±×μ²(", max_size=30)


@given(WORDS, WORDS)
def test_scores_are_symmetric_and_bounded(first, second):
    assert exact_match(first, [second]) == exact_match(second, [first])
    assert token_f1(first, [second]) == token_f1(second, [first])
    assert exact_match(first, [second]) <= token_f1(first, [second]) <= 1


@given(WORDS)
def test_an_answer_equals_itself(text):
    assert exact_match(text, [text]) == token_f1(text, [text]) == 1


@given(WORDS)
def test_normalised_text_has_no_space_to_spare(text):
    assert normalise(text) == " ".join(normalise(text).split())


def test_asked_questions_come_back_scored_in_order(model, tokenizer, make_question):
    records = [make_question(f"What is {place}?", f"answer {place}", order=place) for place in range(5)]
    rows, num_cut = ask(model, tokenizer, records, [None, "short", "long " * 200, None, None], max_new_tokens=4)
    assert [row["id"] for row in rows] == [f"paper/0/{place}" for place in range(5)]
    assert num_cut == 1
    assert rows[3]["evidence"] == "It is answer 3."
    assert rows[3]["exact_match"] == exact_match(rows[3]["given"], rows[3]["accepted"])


@pytest.mark.parametrize("traced", [False, True])
def test_every_accepted_answer_has_room(model, tokenizer, make_question, monkeypatch, traced):
    records = [make_question("What is it?", "short"), make_question("And this?", "a much longer answer than the other one")]
    records[0]["messages"][-1]["reasoning_content"] = "the text says so"
    records[0]["metadata"]["accepted"] = ["an answer accepted as well which is the longest of all of the answers here"]
    limits = []
    monkeypatch.setattr(
        sys.modules[ask.__module__],
        "generate_answers",
        lambda *given, max_new_tokens, batch_size: limits.append(max_new_tokens) or [Answer("", "")] * 2,
    )
    ask(model, tokenizer, records, [None, None], traced=traced)
    ask(model, tokenizer, records, [None, None], max_new_tokens=5, traced=traced)
    longest = records[0]["metadata"]["accepted"][0]
    if traced:
        longest = f"{records[0]['messages'][-1]['reasoning_content']} {longest}"
    assert limits == [len(tokenizer(longest, add_special_tokens=False).input_ids) + 8, 5]


def test_an_answer_leaves_half_of_the_window(model, tokenizer):
    assert answer_limit(model, tokenizer, ["long " * 1000]) == window_length(model) // 2
    assert answer_limit(model, tokenizer, []) == 8


def test_the_report_is_the_mean():
    rows = [{"exact_match": 1.0, "token_f1": 1.0}, {"exact_match": 0.0, "token_f1": 0.5}]
    assert answer_report(rows) == {"exact_match": 0.5, "token_f1": 0.75, "num_questions": 2}
    with pytest.raises(ValueError, match="empty"):
        answer_report([])
