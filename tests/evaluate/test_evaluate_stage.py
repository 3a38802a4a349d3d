import importlib
import json
import math

import pytest
from pydantic import ValidationError

from quasitile.errors import InputError
from quasitile.evaluate import EvaluateSettings, evaluate
from quasitile.evaluate.battery import read_battery

SMALL = EvaluateSettings(
    length=64, general_tokens=200, domain_tokens=150, divergence_tokens=100, num_questions=3, num_open_questions=2,
    max_new_tokens=4, num_choices=5, train_sentences=10, test_sentences=5, num_properties=2, prefill_tokens=20,
    decode_tokens=2, example_tokens=3,
)  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory, make_model, tokenizer):
    """Two models in folders."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for seed, name in enumerate(["original", "adapted"]):
        make_model(seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        made[name] = root / name
    return made


@pytest.fixture
def data(tmp_path, make_question):
    """A reading of two papers, one held out, and every other kind of data."""

    def rows(name, values):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    splits = {"paper": "train", "held": "test"}
    rows("reading/documents.jsonl", [{"document": name, "split": split} for name, split in splits.items()])
    rows("reading/sections.jsonl", [
        {"document": name, "section": 0, "title": "Results", "text": f"The gap of {name} is 1 eV. " * 5, "split": split}
        for name, split in splits.items()
    ])  # fmt: skip
    rows("reading/questions.jsonl", [
        make_question(f"Gap {place} of {document}?", f"{place} eV", split=split, document=document, order=place)
        for document, split in (("paper", "train"), ("paper", "phrasing"), ("held", "test")) for place in range(5)
    ])  # fmt: skip
    general = rows("general.jsonl", [{"title": "a", "text": "Once upon a time there was a fox. " * 10}])
    properties = rows("properties.jsonl", [
        {"document": "held", "material": "Si", "property": "gap", "value": "1", "unit": "eV", "evidence": "It is 1 eV."}
    ])  # fmt: skip
    choices = rows("choices.jsonl", [{"question": "Why?", "options": ["a", "b", "c", "d"], "answer": 2}])
    entities = tmp_path / "entities.conll"
    block = "Pt\tB-MAT\nis\tO\n\n"
    entities.write_text(f"# document = paper\n{block * 12}# document = held\n{block * 6}")
    return {
        "reading": tmp_path / "reading",
        "general": general,
        "properties": properties,
        "choices": choices,
        "entities": entities,
    }


def shape(value):
    """The keys of nested dictionaries, with a list standing for its first element."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return [shape(value[0])] if isinstance(value, list) else None


LOSS = dict.fromkeys(["nats_per_token", "perplexity", "bits_per_character", "num_tokens"])
SCORED = dict.fromkeys(["exact_match", "token_f1", "num_questions"])
CHOICE = dict.fromkeys(["accuracy", "chance", "num_questions"])
ENTITY = dict.fromkeys(["f1", "precision", "recall", "num_entities"])
DOCUMENTED = {
    **dict.fromkeys(["stored_bytes", "resident_bytes", "stored_parameters"]),
    "general": LOSS,
    "domain": LOSS,
    "divergence": {"logit_kl_nats": None, "layers": [dict.fromkeys(["layer", "kl_nats", "relative_squared_error"])]},
    "answers": {book: dict.fromkeys(["train", "phrasing", "test"], SCORED) for book in ("closed_book", "open_book")},
    "choices": {"domain": CHOICE, "general": CHOICE},
    "entities": {**ENTITY, "by_label": {"MAT": ENTITY}},
    "properties": dict.fromkeys(["f1", "precision", "recall", "num_records"]),
    "cost": dict.fromkeys(["load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"]),
}


def test_the_folder_is_as_documented(folders, data, tmp_path):
    out = tmp_path / "evaluation"
    summary = evaluate({"adapted": folders["adapted"], "original": folders["original"]}, out, settings=SMALL, **data)
    assert list(summary["models"]) == ["original", "adapted"]
    assert shape(summary["models"]["adapted"]) == DOCUMENTED
    assert shape(summary["models"]["original"]) == {key: value for key, value in DOCUMENTED.items() if key != "divergence"}
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["models"]["adapted"]["divergence"]["logit_kl_nats"] > 0
    assert summary["models"]["adapted"]["general"]["num_tokens"] == 192  # three whole windows of 64

    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * (3 * 3 + 3 * 2)  # models, splits, and questions with and without the text
    keys = {"model", "book", "split", "id", "question", "answer", "accepted", "given", "exact_match", "token_f1", "evidence"}
    assert all(keys <= set(row) for row in answers)
    by_model = [[row["id"] for row in answers if row["model"] == name] for name in ("original", "adapted")]
    assert by_model[0] == by_model[1]

    examples = json.loads((out / "examples.json").read_text())
    assert [set(example) for example in examples] == [{"prompt", "original", "adapted"}] * 2
    assert {path.name for path in out.iterdir()} >= {"recipe.yaml", "provenance.json"}


def test_measures_without_data_are_absent(folders, data, tmp_path):
    summary = evaluate({"adapted": folders["adapted"]}, tmp_path / "out", general=data["general"], settings=SMALL)
    assert set(summary["models"]["adapted"]) == {"stored_bytes", "resident_bytes", "stored_parameters", "general", "cost"}
    assert (tmp_path / "out" / "answers.jsonl").read_text() == ""


def test_the_same_seed_gives_the_same_numbers(folders, data, tmp_path):
    runs = [evaluate({"adapted": folders["adapted"]}, tmp_path / name, settings=SMALL, **data) for name in ("a", "b")]
    first, second = ({k: v for k, v in run["models"]["adapted"].items() if k != "cost"} for run in runs)
    assert first == second


def test_a_model_does_not_diverge_from_its_copy(folders, data, tmp_path):
    models = {"original": folders["original"], "compressed": folders["original"]}
    summary = evaluate(models, tmp_path / "out", general=data["general"], settings=SMALL)
    divergence = summary["models"]["compressed"]["divergence"]
    assert divergence["logit_kl_nats"] == 0
    assert not any(layer["kl_nats"] for layer in divergence["layers"])
    general = summary["models"]["compressed"]["general"]
    assert general["perplexity"] == pytest.approx(math.exp(general["nats_per_token"]))


def test_text_files_sections_and_pairs_of_entity_files(folders, data, tmp_path):
    (tmp_path / "general.txt").write_text("Some words about nothing in particular.")
    domain = tmp_path / "domain.jsonl"
    domain.write_text(json.dumps({"sections": [{"title": "A", "text": "bcd"}, {"title": "", "text": "ef"}]}) + "\n")
    summary = evaluate(
        {"adapted": folders["adapted"]}, tmp_path / "out", settings=SMALL, general=tmp_path / "general.txt", domain=domain,
        entities=(data["entities"], data["entities"]), choices={"quiz": data["choices"]},
    )["models"]["adapted"]  # fmt: skip
    assert summary["domain"]["num_tokens"] == len("A\n\nbcd\n\nef")
    assert summary["entities"]["num_entities"] == 5
    assert set(summary["choices"]) == {"quiz"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "no model to evaluate"),
        ({"models": {"adaptd": "x"}}, "did you mean 'adapted'"),
        ({"models": {"adapted": "/nowhere"}}, "is not a folder"),
        ({"general": "/nowhere.jsonl"}, "does not exist"),
        ({"reading": None}, "cannot be split without a reading"),
        ({"entities": ["a", "b", "c"]}, "entities has 3 files"),
    ],
)
def test_what_cannot_be_used_is_one_line(folders, data, tmp_path, change, message):
    arguments = {"models": folders, "out": tmp_path / "out", "settings": SMALL, **data, **change}
    with pytest.raises(InputError, match=message) as caught:
        evaluate(**arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "text", "message"),
    [
        ("general", '{"title": "x"}', "row 1 has neither `text` nor `sections`"),
        ("general", '{"text": " "}', "holds no text"),
        ("properties", '{"material": "Si", "property": "gap", "evidence": "e"}', "row 1 has no `value`"),
    ],
)
def test_bad_rows_are_named(folders, data, tmp_path, argument, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=message):
        evaluate({"adapted": folders["adapted"]}, tmp_path / "out", settings=SMALL, **{**data, argument: path})


def test_unknown_settings_fail():
    with pytest.raises(ValidationError):
        EvaluateSettings.model_validate({"num_question": 3})


def test_questions_as_taught_are_about_the_sections_that_were_read(tmp_path, make_question):
    reading, adapted = tmp_path / "reading", tmp_path / "adapted"
    reading.mkdir()
    adapted.mkdir()
    sections = [{"document": name, "section": n, "title": "", "text": "It is 1 eV."} for name in "ab" for n in range(5)]
    questions = [
        make_question(f"Gap {n} of {name}?", "1 eV", split=split, document=name, section=n)
        for name, split in (("a", "train"), ("a", "phrasing"), ("b", "test"))
        for n in range(5)
    ]
    for file, rows in (("sections", [{**row, "split": "train"} for row in sections]), ("questions", questions)):
        (reading / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def asked(taught):
        (adapted / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in taught))
        chosen = EvaluateSettings(num_questions=5)
        records = read_battery(chosen, reading=reading, learned=[tmp_path / "elsewhere", adapted]).questions
        return [(record["metadata"]["split"], record["metadata"]["section"]) for record in records]

    held_out, everything = [("test", n) for n in range(5)], range(5)
    assert asked([questions[3], questions[1]]) == [(split, n) for split in ("train", "phrasing") for n in (1, 3)] + held_out
    for other in ([], [make_question("Gap?", "1 eV", split="train", document="z", section=1)]):
        assert asked(other) == [(split, n) for split in ("train", "phrasing") for n in everything] + held_out


def test_says_when_answers_end_in_their_trace(folders, data, tmp_path, monkeypatch):
    measures = importlib.import_module("quasitile.evaluate.measures")
    whole = measures.ask

    def thinking(*given, **settings):
        rows, num_cut = whole(*given, **settings)
        return [{**row, "given": "" if place < 2 else "1 eV", "trace": "The text"} for place, row in enumerate(rows)], num_cut

    said = []
    monkeypatch.setattr(measures, "ask", thinking)
    monkeypatch.setattr(measures, "say", said.append)
    line = "  2 of 9 answers did not get beyond their trace; set max_new_tokens higher"
    for name, told in (("original", False), ("adapted", True)):
        evaluate({name: folders[name]}, tmp_path / name, settings=SMALL, **data)
        assert (line in said) is told
