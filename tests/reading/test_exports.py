"""Exports are what the loaders of trainers read."""

from __future__ import annotations

import json

import pytest
import yaml

from quasitile.errors import InputError
from quasitile.reading import read
from quasitile.reading.exports import export_questions


@pytest.fixture
def exported(papers, tmp_path):
    (papers / "split.json").write_text('{"test": ["oxides"]}')
    read(papers, tmp_path / "reading")
    return tmp_path / "out", export_questions(tmp_path / "reading", tmp_path / "out")


def test_datasets_reads_every_format_and_keeps_the_trace(exported, tmp_path):
    datasets = pytest.importorskip("datasets")
    out, statistics = exported
    for folder in ("trl", "llama_factory", "axolotl"):
        files = {path.stem: str(path) for path in (out / folder).glob("*.jsonl")}
        assert set(files) == {"train", "phrasing", "test"}
        loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
        assert sum(len(split) for split in loaded.values()) == statistics["num_questions"]
        assert all(row["messages"][1]["reasoning_content"] for row in loaded["train"])
        assert [message["role"] for message in loaded["train"][0]["messages"]] == ["user", "assistant"]


def test_the_card_names_files_and_licences(exported):
    out, statistics = exported
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert all((out / file["path"]).is_file() for file in header["configs"][0]["data_files"])
    assert "- garnets: CC BY 4.0" in card
    info = json.loads((out / "llama_factory" / "dataset_info.json").read_text())
    assert all((out / "llama_factory" / entry["file_name"]).is_file() for entry in info.values())
    assert yaml.safe_load((out / "axolotl" / "datasets.yaml").read_text())["datasets"][0]["type"] == "chat_template"
    assert statistics["by_split"].keys() == {"train", "phrasing", "test"}


def test_trl_takes_the_rows(exported, tmp_path):
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.data_utils import is_conversational

    out, _ = exported
    rows = datasets.load_dataset("json", data_files=str(out / "trl" / "train.jsonl"), cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert is_conversational(rows[0])


def test_a_folder_of_something_else_is_left_alone(exported, papers):
    with pytest.raises(InputError, match="other files"):
        export_questions(exported[0].parent / "reading", papers)
