import json

import pytest
import torch

from quasitile.errors import InputError
from quasitile.evaluate.answers import normalise
from quasitile.evaluate.choices import Item, choice_report, choices_from_questions, option_scores, read_choices
from quasitile.evaluate.generation import prompt

PAIRS = [("What is it?", "a gap"), ("What is it?", "an exceedingly long option"), ("Why does it so?", "1.5 eV"), ("Q", "z")]


@torch.no_grad()
def naive_score(model, tokenizer, question, option, lead):
    """The log-probability of the option, one token at a time."""
    tokens, total = tokenizer.encode(prompt(tokenizer, question)), 0.0
    for token in tokenizer.encode(lead + option):
        total += model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)[token].item()
        tokens.append(token)
    return total


@pytest.mark.parametrize(("per", "length"), [("characters", len), ("nothing", lambda option: 1)])
def test_scores_equal_the_naive_sum(model, tokenizer, per, length):
    scores = option_scores(model, tokenizer, PAIRS, per=per, batch_size=3)
    expected = [naive_score(model, tokenizer, *pair, "") / length(pair[1]) for pair in PAIRS]
    assert scores == pytest.approx(expected, rel=1e-4)


def test_without_a_template_a_space_leads_and_counts_as_a_token(model, plain_tokenizer):
    scores = option_scores(model, plain_tokenizer, PAIRS, per="tokens")
    expected = [naive_score(model, plain_tokenizer, *pair, " ") / (len(pair[1]) + 1) for pair in PAIRS]
    assert scores == pytest.approx(expected, rel=1e-4)


def test_the_likeliest_option_is_the_choice(model, tokenizer):
    items = [Item("What is it?", ("one", "two", "three", "four"), 0), Item("Who?", ("he", "she"), 0)]
    best = []
    for item in items:
        scores = [naive_score(model, tokenizer, item.question, option, "") / len(option) for option in item.options]
        best.append(scores.index(max(scores)))
    right = [item._replace(answer=place) for item, place in zip(items, best, strict=True)]
    assert choice_report(model, tokenizer, right) == {"accuracy": 1, "chance": 0.375, "num_questions": 2}
    wrong = [item._replace(answer=1 - min(place, 1)) for item, place in zip(items, best, strict=True)]
    assert choice_report(model, tokenizer, wrong)["accuracy"] == 0


def test_unusable_input_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="empty"):
        choice_report(model, tokenizer, [])
    with pytest.raises(ValueError, match="per='words'"):
        choice_report(model, tokenizer, [Item("a", ("b", "c"), 0)], per="words")


def records(make_question):
    gaps = [
        make_question(f"What is the gap of {name}?", f"{value} eV") for name, value in zip("abcdef", range(1, 7), strict=True)
    ]
    heat = [make_question(f"When was {name} heated?", f"{value} K") for name, value in zip("xyz", (300, 400, 500), strict=True)]
    words = [
        make_question(f"What is in {name}?", word, kind="composition")
        for name, word in zip("pqr", ("Li", "Na", "K"), strict=True)
    ]
    return [*gaps, *heat, *words, make_question("True or false?", "true", kind="true_false")]


def test_wrong_options_have_the_kind_and_the_unit_of_the_answer(make_question):
    items = choices_from_questions(records(make_question), seed=3)
    assert len(items) == 9  # three words are too few, and true-or-false has no four options
    gaps = [item for item in items if "gap" in item.question]
    assert all(option.endswith("eV") for item in gaps for option in item.options)
    heated = [item for item in items if "heated" in item.question]
    assert all(sum(option.endswith("K") for option in item.options) == 3 for item in heated)
    for item in items:
        assert len({normalise(option) for option in item.options}) == 4


def test_an_accepted_answer_is_never_a_wrong_option(make_question):
    asked = make_question("What is the gap?", "1 eV", accepted=["2 eV", "3 ev"])
    pool = [make_question(f"gap {value}?", f"{value} eV") for value in range(1, 7)]
    again = make_question("What is the gap?", "4 eV")
    assert choices_from_questions([asked], pool=[*pool, again]) == []
    (item,) = choices_from_questions([asked], pool=[*pool, again, make_question("gap 7?", "7 eV")])
    assert set(item.options) == {"1 eV", "5 eV", "6 eV", "7 eV"}
    assert item.options[item.answer] == "1 eV"


def test_the_seed_decides(make_question):
    given = records(make_question)
    assert choices_from_questions(given, seed=1) == choices_from_questions(given, seed=1)
    assert choices_from_questions(given, seed=1) != choices_from_questions(given, seed=2)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_choices_and_glossaries(tmp_path):
    rows = [
        {"question": "Why?", "options": ["a", "b"], "answer": 1},
        {"question": "Why?", "options": ["a", "b"], "answer": "a"},
    ]
    assert [item.answer for item in read_choices(write_rows(tmp_path / "a.jsonl", rows))] == [1, 0]
    glossary = [{"term": term, "meaning": f"is {term}"} for term in ("gap", "phonon", "exciton", "Gap", "hole", "hole")]
    for item in read_choices(write_rows(tmp_path / "b.jsonl", glossary)):
        assert item.question == f"Which term means: is {item.options[item.answer]}?"
        assert len({normalise(option) for option in item.options}) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Why?", "options": ["a", "b"], "answer": 2}], r"row 1: answer 2 is neither"),
        ([{"question": "Why?", "options": ["a"], "answer": 0}], "row 1 needs"),
        ([{"term": "gap", "meaning": "a gap"}], "has 1 terms"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_choices(write_rows(tmp_path / "a.jsonl", rows))


def test_rows_of_the_training_split_are_left_out(tmp_path):
    rows = [{"term": f"term {i}", "meaning": f"meaning {i}", "split": "train" if i < 4 else "test"} for i in range(9)]
    path = tmp_path / "glossary.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.question for item in read_choices(path)] == [f"Which term means: meaning {i}?" for i in range(4, 9)]
