"""Calibration keeps what a model was taught: its share of the windows, nothing held out, nothing repeated."""

import json
import sys

import pytest
import torch
from tests.conftest import refused

from quasitile import ReadSettings, compress, read
from quasitile.compress import CompressSettings, token_windows
from quasitile.compress.settings import CalibrationSettings
from quasitile.compress.text import read_texts
from quasitile.compress.windows import calibration_windows, usable_reading
from quasitile.folders import read_jsonl

END = "<|endoftext|>"
LENGTH = 32
QUICK = {"size": "60%", "tiling": {"short": 16}, "trellis": 1, "workers": 1}
PAPERS = {
    "film": """# Films

## Introduction

Perovskite oxide is a ceramic that carries ions. The band gap of the film is 1.1 eV.
The film was annealed at 500 °C for 2 h in air.

## Results

Grain growth is the increase of the size of crystals. The thermal conductivity of the film is 2.5 W/(m K).
""",
    "glass": """# Glasses

## Introduction

Vitrification is the passage of a liquid into a glass. The band gap of the glass is 7.9 eV.
The melt was quenched at 900 °C for 3 h in argon.
""",
}


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Two papers, of which one is held out; every fact keeps a wording back."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "papers").mkdir()
    for name, paper in PAPERS.items():
        (folder / "papers" / f"{name}.md").write_text(paper)
    read(
        folder / "papers", folder / "reading", ReadSettings(test_documents=("glass",), test_share=0.0, hold_out_phrasings=True)
    )
    splits = {row["metadata"]["split"] for row in read_jsonl(folder / "reading" / "questions.jsonl")}
    assert splits == {"train", "phrasing", "test"}
    return folder / "reading"


@pytest.fixture
def said(monkeypatch):
    """What is printed about the work."""
    lines = []
    monkeypatch.setattr(sys.modules["quasitile.compress.windows"], "say", lines.append)
    return lines


def amount(**changes):
    return CalibrationSettings.model_validate({"num_windows": 12, "num_tokens": LENGTH, **changes})


def shown(reading, *splits):
    """Questions with their answers as the model is taught them."""
    rows = [row for row in read_jsonl(reading / "questions.jsonl") if row["metadata"]["split"] in splits]
    return [f"<|user|>{row['messages'][0]['content']}<|assistant|>{row['messages'][1]['content']}" for row in rows]


def test_without_a_reading_the_windows_are_those_of_the_text(tokenizer, text_file):
    windows = calibration_windows(tokenizer, text_file, amount(), 3)
    assert torch.equal(windows, token_windows(tokenizer, read_texts(text_file), LENGTH, 12, 3))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_reading_gets_its_share_and_text_the_rest(tokenizer, text_file, reading, share):
    windows = calibration_windows(tokenizer, text_file, amount(reading_share=share), 0, reading)
    general = token_windows(tokenizer, read_texts(text_file), LENGTH, 12, 0)
    num_general = 12 - round(12 * share)
    assert windows.shape == (12, LENGTH)
    assert torch.equal(windows[:num_general], general[:num_general])
    words = tokenizer.decode(windows[num_general:].flatten()).split(END)
    taught = shown(reading, "train")
    assert set(words[:-1]) <= set(taught)
    assert any(text.startswith(words[-1]) for text in taught)  # the last question may be cut


def test_a_text_that_is_short_keeps_the_shares(tokenizer, reading, tmp_path):
    (tmp_path / "short.txt").write_text("the band gap of silicon is 1.1 eV and " * 20)
    settings = amount(num_windows=96, reading_share=0.25)
    general = token_windows(tokenizer, read_texts(tmp_path / "short.txt"), LENGTH, 96)
    windows = calibration_windows(tokenizer, tmp_path / "short.txt", settings, 0, reading)
    assert len(windows) - len(general) == round(len(general) / 3)


def test_everything_taught_is_there_once_and_nothing_held_out(tokenizer, text_file, reading, said):
    """More is asked for than there is: all training wordings once, what is left of the last window goes on as text."""
    windows = calibration_windows(tokenizer, text_file, amount(num_windows=90, reading_share=0.8), 0, reading)
    general = token_windows(tokenizer, read_texts(text_file), LENGTH, 90)
    num_tokens = sum(len(tokenizer(text + END, add_special_tokens=False)["input_ids"]) for text in shown(reading, "train"))
    num_whole, rest = divmod(num_tokens, LENGTH)
    assert num_whole > 2
    assert rest > 0
    assert windows.shape == (90, LENGTH)
    num_general = 90 - num_whole
    assert torch.equal(windows[: num_general - 1], general[: num_general - 1])
    assert torch.equal(windows[num_general - 1, rest:], general[num_general - 1, rest:])
    found = torch.cat((windows[num_general:].flatten(), windows[num_general - 1, :rest]))
    assert sorted(tokenizer.decode(found).split(END)[:-1]) == sorted(shown(reading, "train"))
    assert not any(text in tokenizer.decode(windows.flatten()) for text in shown(reading, "phrasing", "test"))
    assert len(said) == 1
    assert f"holds {num_tokens} tokens of the {72 * LENGTH}" in said[0]


def test_a_reading_of_less_than_a_window_is_not_lost(tokenizer, text_file, reading, tmp_path):
    rows = [row for row in read_jsonl(reading / "questions.jsonl") if row["metadata"]["split"] == "train"][:1]
    (tmp_path / "questions.jsonl").write_text(json.dumps(rows[0]) + "\n")
    windows = calibration_windows(tokenizer, text_file, amount(num_tokens=128), 0, tmp_path)
    assert len(windows) == 12
    assert tokenizer.decode(windows[-1]).startswith(shown(tmp_path, "train")[0] + END)


def test_the_seed_draws_the_questions(tokenizer, text_file, reading):
    drawn = [calibration_windows(tokenizer, text_file, amount(reading_share=0.5), seed, reading) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0][6:], drawn[2][6:])


def test_a_tokenizer_without_a_chat_template(tokenizer, text_file, reading, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    windows = calibration_windows(tokenizer, text_file, amount(reading_share=0.5), 0, reading)
    assert tokenizer.decode(windows[6]).startswith("Question: ")


def test_what_is_not_used_is_named(reading, said):
    assert usable_reading(None, amount()) is None
    assert said == []
    assert usable_reading(None, amount(reading_share=0.5)) is None
    assert "calibration.reading_share is not used" in said.pop()
    for nothing in ({"reading_share": 0}, {"num_windows": 1}):
        assert usable_reading(reading, amount(**nothing)) is None
        assert "reading is not used" in said.pop()
    assert usable_reading(str(reading), amount()) == reading
    assert said == []
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="reading_share"):
            amount(reading_share=share)


def calibrated(model, out, text, reading, monkeypatch, **calibration):
    """The windows that a compression calibrates on; it goes no further."""

    class Seen(Exception):
        pass

    def see(windows, *_):
        raise Seen(windows)

    monkeypatch.setattr(sys.modules["quasitile.compress.pipeline"], "calibrate", lambda model, windows, *rest: see(windows))
    streamed = sys.modules["quasitile.compress.outofcore"].OutOfCore
    monkeypatch.setattr(streamed, "calibrate", lambda self, windows, *rest: see(windows))
    settings = CompressSettings.model_validate(
        {**QUICK, "calibration": {"num_windows": 12, "num_tokens": LENGTH, **calibration}}
    )
    with pytest.raises(Seen) as seen:
        compress(model, out, text=text, reading=reading, settings=settings)
    return seen.value.args[0]


def test_streamed_and_in_memory_draw_the_same_windows(model_folder, tokenizer, text_file, reading, tmp_path, monkeypatch):
    expected = calibration_windows(tokenizer, text_file, amount(), 0, reading)
    for stream in ("yes", "no"):
        found = calibrated(model_folder, tmp_path / stream, text_file, reading, monkeypatch, stream=stream)
        assert torch.equal(found, expected)


def test_the_same_seed_gives_the_same_bytes_and_provenance_names_the_reading(model_folder, text_file, reading, tmp_path):
    settings = CompressSettings.model_validate({**QUICK, "calibration": {"num_windows": 4, "num_tokens": LENGTH}})
    for name in ("a", "b"):
        compress(model_folder, tmp_path / name, text=text_file, reading=reading, settings=settings)
    weights = [(tmp_path / name / "model-00001-of-00001.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["inputs"]["reading"] == str(reading)


def test_a_stopped_run_goes_on_with_the_same_reading_only(model_folder, text_file, reading, tmp_path, monkeypatch):
    """The journal's first line, which says what the work is for, depends on the questions and not on where they lie."""
    marks = []
    changed = tmp_path / "changed"
    changed.mkdir()
    rows = (reading / "questions.jsonl").read_text()
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "questions.jsonl").write_text(rows)
    (changed / "questions.jsonl").write_text(rows.replace("1.1 eV", "1.2 eV"))
    for given in (reading, tmp_path / "copied", changed, None):
        calibrated(model_folder, tmp_path / "out", text_file, given, monkeypatch, stream="yes")
        marks.append((tmp_path / ".out.partial" / "work" / "journal.jsonl").read_text())
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


@pytest.mark.parametrize("stream", ["yes", "no"])
def test_what_is_no_reading_is_refused_and_nothing_is_left(quasitile, model_folder, text_file, reading, tmp_path, stream):
    made = tmp_path / "made"
    made.mkdir()
    command = ("compress", model_folder, made / "out", "--text", text_file, "--set", f"calibration.stream={stream}")
    refused(quasitile(*command, "--reading", tmp_path / "none"), "none is no reading", "`quasitile read`")
    refused(quasitile(*command, "--reading", model_folder), "is no reading", "no questions.jsonl")
    questions = tmp_path / "questions.jsonl"
    held_out = [row for row in read_jsonl(reading / "questions.jsonl") if row["metadata"]["split"] != "train"]
    questions.write_text("".join(json.dumps(row) + "\n" for row in held_out))
    refused(quasitile(*command, "--reading", tmp_path), "holds no question to train on", "not all held out")
    for row in ({"question": "Why?"}, {"metadata": {"split": "train"}, "messages": [{"role": "user", "content": "Why?"}]}):
        questions.write_text(json.dumps(held_out[0]) + "\n" + json.dumps(row) + "\n")
        refused(quasitile(*command, "--reading", tmp_path), "record 2 is no question", "questions.jsonl")
    questions.write_text("{")
    refused(quasitile(*command, "--reading", tmp_path), "questions.jsonl:1 is not valid JSON")
    assert not list(made.iterdir())


def test_a_baseline_takes_no_reading(quasitile, model_folder, text_file, reading, tmp_path):
    command = ("compress", model_folder, tmp_path / "out", "--text", text_file, "--recipe", "gptq", "--reading", reading)
    refused(quasitile(*command), "--reading is not for a baseline", "leave it out")


def test_the_command_takes_a_reading_and_what_it_made_is_refused_with_the_remedy(
    quasitile, model_folder, text_file, reading, tmp_path
):
    changes = {"tiling.short": 16, "trellis": 1, "workers": 1, "calibration.propagate": "original", "calibration.stream": "yes"}
    changes |= {"calibration.num_tokens": LENGTH, "calibration.num_windows": 4}
    more = ("--text", text_file, "--reading", reading, "--size", "60%")
    more += tuple(part for key, value in changes.items() for part in ("--set", f"{key}={value}"))
    assert quasitile("compress", model_folder, tmp_path / "out", *more) == (0, [])
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["inputs"]["reading"] == str(reading)
    refused(quasitile("compress", tmp_path / "out", tmp_path / "again", *more), "already compressed", "quasitile export")
    assert not (tmp_path / "again").exists()
