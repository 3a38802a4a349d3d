"""Bad input on the command line: one line, exit status 2, nothing half-written."""

import errno
import os
import signal
import subprocess

import pytest
from tests.conftest import refused
from typer.testing import CliRunner

import quasitile as package
from quasitile import load_recipe
from quasitile.checkpoint import shards
from quasitile.cli import app
from quasitile.report import terminal


def test_a_missing_model_folder(quasitile, text_file, tmp_path):
    refused(quasitile("compress", tmp_path / "none", tmp_path / "out", "--text", text_file), "none", "is not")
    assert not (tmp_path / "out").exists()


def test_a_missing_papers_folder(quasitile, tmp_path):
    refused(quasitile("read", tmp_path / "none", tmp_path / "out"), "none does not exist", "give a folder of papers")
    assert not (tmp_path / "out").exists()


def test_an_empty_papers_folder(quasitile, tmp_path):
    (tmp_path / "papers").mkdir()
    refused(quasitile("read", tmp_path / "papers", tmp_path / "out"), "holds no paper")
    assert not (tmp_path / "out").exists()


def test_what_the_package_carries_goes_by_name(quasitile, tmp_path):
    assert quasitile("inspect", "embedded:base") == (0, [])
    refused(quasitile("inspect", "embedded:none"), "embedded:none is not among", "give a path")
    command = ("compress", "embedded:base", tmp_path / "out", "--text", "embedded:none")
    refused(quasitile(*command), "embedded:none is not among", "give a path")


def test_an_unknown_key(quasitile, tmp_path):
    (tmp_path / "recipe.yaml").write_text("compress: {sise: 25%}")
    refused(quasitile("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run"), "compress.sise", "did you mean size?")
    assert not (tmp_path / "run").exists()


def test_a_size_that_cannot_be_met(quasitile, model_folder, text_file, tmp_path):
    command = ("compress", model_folder, tmp_path / "out", "--text", text_file, "--size", "1%")
    refused(
        quasitile(*command, "--set", "tiling.short=16", "--set", "calibration.num_tokens=32"), "cannot be met", "raise --size"
    )
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_none(quasitile, model_folder, text_file, tmp_path):
    refused(quasitile("compress", model_folder, tmp_path / "out", "--text", text_file, "--size", "lots"), "is not a size")


def test_a_run_folder_of_another_recipe(quasitile, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: other")
    refused(quasitile("run", "--out", tmp_path / "run"), "run of another recipe")


def test_an_output_folder_with_other_things(quasitile, model_folder, text_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refused(quasitile("compress", model_folder, tmp_path, "--text", text_file, "--size", "60%"), "already holds other files")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_picture_of_a_tiling(quasitile, model_folder, tmp_path):
    changes = ("--set", "tiling.name=hierarchical", "--set", "tiling.short=16")
    status, _ = quasitile("inspect", model_folder, "--picture", tmp_path / "tiling.svg", *changes)
    assert status == 0
    assert "hierarchical tiling of" in (tmp_path / "tiling.svg").read_text()
    refused(quasitile("inspect", model_folder, "--picture", tmp_path / "x.svg", "--matrix", "nothing"), "no matrix nothing")


def compress_here(quasitile, model_folder, text_file, out):
    return quasitile(
        "compress", model_folder, out, "--text", text_file, "--size", "60%",
        "--set", "tiling.short=16", "--set", "calibration.num_tokens=32", "--set", "calibration.num_windows=4",
    )  # fmt: skip


def test_a_full_disk_while_writing(quasitile, model_folder, text_file, tmp_path, monkeypatch):
    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(shards, "save_file", full)
    refused(compress_here(quasitile, model_folder, text_file, tmp_path / "out"), "no space left", "free some room")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_really_full(quasitile, model_folder, text_file, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(small)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        refused(compress_here(quasitile, model_folder, text_file, small / "out"), "no space left")
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_an_interrupted_command_says_how_to_go_on(quasitile, monkeypatch, tmp_path):
    def stop(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("quasitile.read", stop)
    status, lines = quasitile("read", tmp_path, tmp_path / "out")
    assert status == 130
    assert "go on" in lines[0]


def test_a_size_like_a_number_of_parameters_stays_text(quasitile, model_folder, text_file, tmp_path):
    out = tmp_path / "out"
    changes = ("--set", "tiling.short=16", "--set", "calibration.num_tokens=32", "--set", "calibration.num_windows=4")
    status, _ = quasitile("compress", model_folder, out, "--text", text_file, "--size", "20K", *changes)
    assert status == 0
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize("command", ["align", "adapt", "tune", "run"])
def test_report_to_is_a_setting_of_every_stage_that_trains(command, text_file, model_folder, tmp_path, monkeypatch):
    """Given twice it is both; `run` hands it to both stages that train, beside what `--set` says."""
    given = []
    monkeypatch.setattr(package, command, lambda *args, **kwargs: given.append((args, kwargs)) or {})
    monkeypatch.setattr(terminal, "print_run", lambda *args: None)
    model, out = str(model_folder), str(tmp_path / "out")
    places = {
        "align": [model, out, "--teacher", model, "--text", str(text_file), "--set", "num_steps=3"],
        "adapt": [model, str(tmp_path), out, "--text", str(text_file), "--set", "num_questions=3"],
        "tune": [model, str(tmp_path), out, "--set", "num_steps=3"],
        "run": ["--out", out, "--set", "seed=3"],
    }
    result = CliRunner().invoke(app, [command, *places[command], "--report-to", "tensorboard", "--report-to", "wandb"])
    assert result.exit_code == 0, result.output
    ((args, kwargs),) = given
    if command == "run":
        recipe = load_recipe(None, kwargs["overrides"])
        assert recipe.seed == 3
        assert recipe.align.report_to == recipe.adapt.report_to == ("tensorboard", "wandb")
        return
    settings = kwargs["settings"] if "settings" in kwargs else args[3]
    assert settings.report_to == ("tensorboard", "wandb")
    assert {"align": "num_steps", "adapt": "num_questions", "tune": "num_steps"}[command] in settings.model_fields_set
