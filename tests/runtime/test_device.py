"""Every stage computes where it is told to, with the results of the CPU; `pretend_device.py` stands in for a GPU."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import plainly_compressed, read_paper

from quasitile import CompressSettings, InputError, SampleSettings, compress, load_recipe, sample
from quasitile.runtime import device_of

PAPER = """# Oxide films

## Introduction

Perovskite oxide is a ceramic that carries ions. The band gap of the film is 1.1 eV.
The film was annealed at 500 °C for 2 h in air.
"""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory, model_folder, text_file):
    """What `on_device.py` computed on the CPU and on the device, each in a process of its own."""
    folder = tmp_path_factory.mktemp("device")
    shutil.copytree(model_folder, folder / "dense")
    shutil.copy(text_file, folder / "text.jsonl")
    plainly_compressed(model_folder, folder / "compressed", text_file, "60%")
    calibration = {"num_windows": 6, "num_tokens": 32, "propagate": "original"}
    settings = {"size": "35%", "residual": "none", "tiling": {"short": 16}, "calibration": calibration, "workers": 1}
    compress(model_folder, folder / "factors", text=text_file, settings=CompressSettings.model_validate(settings))
    read_paper(folder, PAPER)
    running = {}
    for device in ("cpu", "pretend"):
        command = [sys.executable, "-m", "tests.runtime.on_device", device, str(folder)]
        running[device] = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for process in running.values():
        _, errors = process.communicate()
        assert not process.returncode, errors[-4000:]
    return {device: json.loads((folder / device / "numbers.json").read_text()) for device in running}


STAGES = ("record", "compress", "align", "adapt", "evaluate", "sample", "read", "compressed", "factors")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_on_a_device_what_it_gives_on_the_cpu(numbers, stage):
    mine = {name: value for name, value in numbers["pretend"].items() if name.startswith(stage)}
    assert mine
    # `adapt` computes in bf16 on the CPU alone, since the device knows no autocast; so what it learns differs a little.
    near = 2e-3 if stage == "adapt" else 2e-4
    assert mine == pytest.approx({name: numbers["cpu"][name] for name in mine}, rel=near)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of("auto") == torch.device("cuda:3")


@pytest.mark.parametrize("name", ["gpu", "cuda:77", ""])
def test_a_device_that_is_not_there_is_named_in_one_line(name, tmp_path, model_folder):
    with pytest.raises(InputError, match=f"device='{name}' cannot be used here"):
        sample(model_folder, tmp_path / "out", SampleSettings(device=name))
    assert not (tmp_path / "out").exists()


def test_a_recipes_device_is_that_of_all_its_stages():
    recipe = load_recipe(None, ["device=cpu", "align.device=cuda"])
    assert (recipe.align.device, recipe.adapt.device, recipe.evaluate.device) == ("cuda", "cpu", "cpu")
