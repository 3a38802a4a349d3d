"""Baselines of reading: the same sections, steps and tokens, by Transformers' trainer and by PEFT."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import plainly_compressed, read_paper

from quasitile import EvaluateSettings, TuneSettings, evaluate, export, load_model, tune
from quasitile.adapt.curriculum import read_lessons
from quasitile.adapt.examples import IGNORED
from quasitile.align.steps import held_out_nats
from quasitile.baselines.lora import add_lora
from quasitile.baselines.tuning import Source, batches_of, general_windows, question_rows, text_rows
from quasitile.checkpoint import stored_bytes
from quasitile.compress.text import read_texts
from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.runtime import tiled_matrices
from quasitile.runtime.lora import adapter_base

PAPER = """# Oxide films

## Introduction

Perovskite oxide is a ceramic that carries ions. The band gap of the film is 1.1 eV.

## Results

Grain growth is the increase of the size of crystals. The thermal conductivity of the film is 2.5 W/(m K).
"""


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    return read_paper(tmp_path_factory.mktemp("reading"), PAPER)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, model_folder, text_file):
    return plainly_compressed(model_folder, tmp_path_factory.mktemp("tune") / "compressed", text_file, "60%")


def settings(**changes):
    return TuneSettings(**{"num_steps": 8, "num_tokens": 1600, "text_tokens": 32, **changes})


@pytest.mark.parametrize("data", ["questions", "text"])
def test_batches_share_the_tokens_equally_and_pass_over_everything(reading, tokenizer, data):
    lessons = read_lessons(reading)
    batches = list(batches_of(tokenizer, lessons, settings(data=data), 256))
    counts = [int(batch["attention_mask"].sum()) for batch in batches]
    longest = 64
    assert len(batches) == 8
    assert abs(sum(counts) - 1600) < longest
    assert all(abs(count - 200) < longest for count in counts)
    assert all((batch["labels"] != IGNORED).any() for batch in batches)
    if data == "text":
        learned = {tuple(row) for row, _ in text_rows(tokenizer, lessons, 32)}
        seen = {
            tuple(ids[mask.bool()].tolist())
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        }
        assert seen == learned


def test_rows_of_like_length_go_together_if_wanted(reading, tokenizer):
    lessons, padding, lengths = read_lessons(reading), {}, {}
    for grouped in (False, True):
        rows = Source(question_rows(tokenizer, lessons), 1.0, random.Random(0), 10**6 if grouped else 1)
        one_pass = [len(ids) for ids, _ in rows.take(sum(len(ids) for ids, _ in rows.rows), 256)]
        lengths[grouped] = sorted(one_pass)
        assert (one_pass == lengths[grouped][::-1]) == grouped
        batches = batches_of(tokenizer, lessons, settings(num_steps=40, num_tokens=8000, group_by_length=grouped), 256)
        padding[grouped] = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert lengths[True] == lengths[False]
    assert padding[True] < 0.75 * padding[False]


def test_replayed_text_has_its_share_of_every_batch(reading, tokenizer, text_file):
    amounts = settings(num_tokens=3200, replay_share=0.5)
    _, replay = general_windows(tokenizer, read_texts(text_file), amounts)
    general = {tuple(ids) for ids, _ in replay}
    shares = []
    for batch in batches_of(tokenizer, read_lessons(reading), amounts, 256, replay):
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [tuple(ids[:length].tolist()) for ids, length in zip(batch["input_ids"], lengths, strict=True)]
        shares.append(sum(len(row) for row in rows if row in general) / sum(lengths))
    assert all(0.3 < share < 0.7 for share in shares)
    assert abs(sum(shares) / len(shares) - 0.5) < 0.05


def test_replay_without_text_is_refused(compressed, reading, tmp_path):
    for name in ("replay_share", "forget_nats"):
        with pytest.raises(InputError, match=f"{name} .*--text"):
            tune(compressed, reading, tmp_path / "out", settings(**{name: 0.5}))
    assert not (tmp_path / "out").exists()


def answer_nats(model, tokenizer, reading):
    (batch,) = batches_of(tokenizer, read_lessons(reading), settings(num_steps=1, num_tokens=800), 256)
    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dense", {"train": "full", "learning_rate": 3e-3, "replay_share": 0.2}),
        ("dense", {"train": "full", "learning_rate": 3e-3}),
        ("compressed", {"train": "full", "learning_rate": 0.3}),
        ("dense", {"train": "lora", "learning_rate": 3e-2}),
        ("compressed", {"train": "lora", "learning_rate": 3e-2}),
    ],
    ids=str,
)
def test_questions_are_learned(kind, changes, compressed, model_folder, reading, text_file, tmp_path):
    if changes["train"] == "lora":
        pytest.importorskip("peft")
    base = compressed if kind == "compressed" else model_folder
    summary = tune(base, reading, tmp_path / "out", settings(**changes), text=text_file)
    before, tokenizer = load_model(base)
    after, _ = load_model(tmp_path / "out")
    assert answer_nats(after, tokenizer, reading) < answer_nats(before, tokenizer, reading) - 0.1
    assert summary["num_steps"] == 8
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_tokens"] == summary["num_tokens"]
    if kind == "compressed" and changes["train"] == "full":
        assert stored_bytes(tmp_path / "out") <= stored_bytes(compressed)


def test_an_adapter_starts_as_nothing_and_leaves_the_coded_weights_alone(compressed):
    pytest.importorskip("peft")
    model, _ = load_model(compressed)
    tokens = torch.arange(8, 40).view(1, 32)
    with torch.no_grad():
        before = model(tokens).logits.clone()
    weights = {name: matrix.weight().clone() for name, matrix in tiled_matrices(model).items()}
    adapted = add_lora(model, 4, 8, 0)
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens).logits, before)
    learning = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    adapted(tokens).logits.sum().backward()
    for name, matrix in tiled_matrices(adapted.base_model.model).items():
        assert torch.equal(matrix.weight(), weights[name.removesuffix(".base_layer")])


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "full", "learning_rate": 10.0, "forget_nats": 0.03},
        {"train": "lora", "learning_rate": 0.1, "forget_nats": 0.1},
    ],
    ids=str,
)
def test_what_costs_general_text_too_much_is_drawn_back(changes, compressed, reading, foreign_file, tmp_path):
    if changes["train"] == "lora":
        pytest.importorskip("peft")
    amounts = settings(**changes, judged_windows=16)
    summary = tune(compressed, reading, tmp_path / "out", amounts, text=foreign_file)
    before, tokenizer = load_model(compressed)
    judged, _ = general_windows(tokenizer, read_texts(foreign_file), amounts)
    after, _ = load_model(tmp_path / "out")
    assert 0 < summary["kept_share"] < 1
    rise, allowed = held_out_nats(after, judged) - held_out_nats(before, judged), changes["forget_nats"]
    assert 0.2 * allowed < rise <= allowed + 1e-3


@pytest.mark.parametrize("kind", ["dense", "compressed"])
def test_an_adapter_is_evaluated_beside_the_model_it_belongs_to(kind, compressed, model_folder, reading, text_file, tmp_path):
    pytest.importorskip("peft")
    base = compressed if kind == "compressed" else model_folder
    tune(base, reading, tmp_path / "lora", settings(train="lora", learning_rate=0.1, max_sections=1))
    limits = EvaluateSettings(general_tokens=128, num_questions=4, num_open_questions=1, max_new_tokens=4)
    before = "aligned" if kind == "compressed" else "original"
    models = {before: base, "tuned": tmp_path / "lora"}
    found = evaluate(models, tmp_path / "evaluation", reading=reading, general=text_file, settings=limits)["models"]
    adapter = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    own = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert found["tuned"]["stored_bytes"] == found[before]["stored_bytes"] + own
    numbers = sum(values.numel() for values in adapter.values())
    assert found["tuned"]["stored_parameters"] == found[before]["stored_parameters"] + numbers
    assert found["tuned"]["general"]["nats_per_token"] != found[before]["general"]["nats_per_token"]
    taught = {record["metadata"]["id"] for record in read_jsonl(tmp_path / "lora" / "questions.jsonl")}
    asked = {row["id"] for row in read_jsonl(tmp_path / "evaluation" / "answers.jsonl") if row["split"] == "train"}
    assert asked
    assert asked <= taught


def test_an_adapter_finds_its_model_from_anywhere(model_folder, reading, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(model_folder.parent)
    tune(model_folder.name, reading, tmp_path / "lora", settings(train="lora"))
    monkeypatch.chdir(tmp_path)
    assert load_model("lora")[0].peft_config
    assert adapter_base(tmp_path / "lora") == str(model_folder.resolve())


def test_a_folder_with_a_model_of_its_own_is_no_adapter(model_folder, tmp_path):
    both = shutil.copytree(model_folder, tmp_path / "both")
    (both / "adapter_config.json").write_text('{"base_model_name_or_path": "."}')
    assert adapter_base(both) is None  # Transformers opens both


def test_an_adapter_that_cannot_be_opened_says_what_to_do(tmp_path):
    config = tmp_path / "adapter_config.json"
    for text, message in (
        ("{}", "set base_model_name_or_path"),
        ('{"base_model_name_or_path": "/nowhere/model"}', "is an adapter for /nowhere/model"),
    ):
        config.write_text(text)
        with pytest.raises(InputError, match=message):
            load_model(tmp_path)
    with pytest.raises(InputError, match="is an adapter of PEFT and no model"):
        export(tmp_path, tmp_path / "out")
