"""A whole run on a tiny model: every stage, resumed after kills, and refused where it must be."""

import json
import multiprocessing
import shutil
import sys
import time

import pytest
import torch
import yaml

import quasitile
from quasitile import InputError, load_model, load_recipe, run
from quasitile.checkpoint import stored_bytes
from quasitile.run import grows, hint_at_finish, ready_to_learn, stage_calls

PAPER = """# {title}

## Introduction

{title} is a ceramic that carries ions at high temperature. The band gap of the film is {gap} eV.
The power conversion efficiency (PCE) of the device was 21.5 %.

## Methods

The film was annealed at 500 °C for 2 h in air. The resistance falls because grain growth removes boundaries.
"""
ENTITIES = "# document = {name}\nThe\tO\nband\tB-property\ngap\tI-property\nis\tO\n1.1\tB-value\neV\tB-unit\n.\tO\n\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, gap in (("zirconia", 5.0), ("ceria", 3.2), ("titania", 3.1)):
        (folder / f"{name}.md").write_text(PAPER.format(title=name.capitalize(), gap=gap))
    (folder / "split.json").write_text('{"test": ["titania"]}')
    (folder / "broken.xml").write_text("<article><body><sec>")
    (folder / "entities.conll").write_text("".join(ENTITIES.format(name=name) * 4 for name in ("zirconia", "ceria", "titania")))
    return folder


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, model_folder, corpus, text_file):
    content = {
        "name": "tiny", "model": str(model_folder), "papers": str(corpus),
        "data": {"general": str(text_file), "entities": [str(corpus / "entities.conll")]},
        "sample": {"num_texts": 24, "num_tokens": 48},
        "compress": {"size": "60%", "tiling": {"short": 16}, "calibration": {"num_windows": 4, "num_tokens": 32}, "workers": 1},
        "align": {"num_steps": 2, "batch_size": 4, "num_tokens": 32, "held_out_windows": 4},
        "adapt": {"steps_per_section": 1, "num_asked": 1, "text_tokens": 32, "replay_tokens": 32, "gate_windows": 4},
        "evaluate": {
            "general_tokens": 128, "domain_tokens": 64, "num_questions": 4, "num_choices": 4, "length": 64,
            "prefill_tokens": 16, "decode_tokens": 2, "example_tokens": 4, "max_new_tokens": 4, "divergence_tokens": 64,
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe_file):
    out = tmp_path_factory.mktemp("run") / "run"
    summary = run(recipe_file, out)
    return out, summary


def test_a_run_leaves_what_is_documented(finished):
    out, summary = finished
    for name in ("recipe.yaml", "summary.json", "provenance.json", "metrics.jsonl", "report.html"):
        assert (out / name).is_file(), name
    for stage in ("plan", "text", "compressed", "aligned", "reading", "adapted", "evaluation"):
        for name in ("recipe.yaml", "summary.json", "provenance.json"):
            assert (out / stage / name).is_file(), f"{stage}/{name}"
    assert not list(out.glob(".*"))
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["size"]["stored_bytes"] == stored_bytes(out / "adapted") <= summary["size"]["target_bytes"]
    assert set(summary["seconds"]) == set(summary["stages"])
    provenance = json.loads((out / "provenance.json").read_text())
    assert (
        provenance["versions"]["torch"] == torch.__version__.split("+")[0]
        or provenance["versions"]["torch"] == torch.__version__
    )


def test_what_will_learn_lies_on_no_trellis_unless_the_recipe_says_so(finished, recipe_file):
    out, _ = finished
    assert yaml.safe_load((out / "compressed" / "recipe.yaml").read_text())["trellis"] == 1
    assert ready_to_learn(load_recipe(recipe_file)).compress.trellis == 1
    assert ready_to_learn(load_recipe(recipe_file, ["compress.trellis=8"])).compress.trellis == 8


def test_every_model_is_measured(finished):
    out, _ = finished
    models = json.loads((out / "evaluation" / "summary.json").read_text())["models"]
    assert list(models) == ["original", "compressed", "aligned", "adapted"]
    assert models["compressed"]["divergence"]["logit_kl_nats"] > 0
    assert all({"general", "domain", "answers", "entities", "cost"} <= measures.keys() for measures in models.values())


def test_the_broken_paper_is_counted_and_named(finished):
    out, summary = finished
    assert summary["stages"]["read"]["num_skipped"] == 1
    assert "broken.xml" in (out / "reading" / "skipped.jsonl").read_text()


def test_the_held_out_paper_is_never_trained_on(finished):
    out, _ = finished
    rows = [json.loads(line) for line in (out / "adapted" / "metrics.jsonl").read_text().splitlines()]
    assert {row["document"] for row in rows} == {"zirconia", "ceria"}


@pytest.mark.parametrize("folder", ["compressed", "aligned", "adapted"])
def test_the_models_load_and_write(finished, folder):
    model, tokenizer = load_model(finished[0] / folder)
    tokens = torch.tensor([tokenizer("the band gap")["input_ids"]])
    assert model.generate(tokens, max_new_tokens=4, min_new_tokens=4, pad_token_id=1).shape[1] == tokens.shape[1] + 4


def test_a_finished_run_is_not_done_again(finished, recipe_file):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}
    run(recipe_file, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.parent != out}


def test_a_lost_stage_is_done_again_and_gives_the_same_bytes(finished, recipe_file, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished[0], again)
    shutil.rmtree(again / "aligned")
    run(recipe_file, again)
    file = "model-00001-of-00001.safetensors"
    assert (again / "aligned" / file).read_bytes() == (finished[0] / "aligned" / file).read_bytes()


def test_with_a_warm_up_the_model_that_learned_is_compressed(finished, recipe_file, tmp_path):
    changes = ["warm_up.num_steps=2", "warm_up.num_tokens=128", "warm_up.text_tokens=32", "warm_up.learning_rate=0.01"]
    recipe = load_recipe(recipe_file, changes)
    for folder in ("text", "reading"):
        shutil.copytree(finished[0] / folder, tmp_path / folder)
    calls = stage_calls(recipe, tmp_path, recipe.model, recipe.papers)
    assert list(calls) == ["inspect", "sample", "read", "warm_up", "compress", "align", "adapt", "evaluate"]
    assert calls["warm_up"]()["num_steps"] == 2
    settings = json.loads((tmp_path / "warmed-up" / "provenance.json").read_text())
    assert settings["inputs"]["text"].endswith("samples.jsonl")  # half of what it learns
    calls["compress"]()
    assert json.loads((tmp_path / "compressed" / "provenance.json").read_text())["inputs"]["model"].endswith("warmed-up")
    before, after = (load_model(folder)[0].state_dict() for folder in (recipe.model, tmp_path / "warmed-up"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_has_read_is_compressed_further(finished, recipe_file, tmp_path):
    """Every stage before is that of the run without it; the last model is smaller, and calibrated on what was taught."""
    smaller = tmp_path / "smaller"
    shutil.copytree(finished[0], smaller)
    changes = ["finish.size=40%"]
    shutil.rmtree(smaller / "evaluation")
    recipe = ready_to_learn(load_recipe(recipe_file, changes))
    (smaller / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    summary = run(recipe_file, smaller, overrides=changes)
    assert list(summary["stages"])[-2:] == ["finish", "evaluate"]
    assert summary["size"]["stored_bytes"] == stored_bytes(smaller / "finished") <= 0.4 * summary["size"]["original_bytes"]
    assert not (smaller / "adapted-dense").exists()
    made = json.loads((smaller / "finished" / "provenance.json").read_text())
    assert made["inputs"]["reading"] == str(smaller / "adapted")
    assert "finished" in json.loads((smaller / "evaluation" / "summary.json").read_text())["models"]
    assert "compressed further" in (smaller / "report.html").read_text()


def test_a_size_to_finish_at_that_is_none_is_refused_before_anything_is_made(recipe_file, tmp_path):
    with pytest.raises(InputError, match=r"^finish\.size='small' is not a size"):
        run(recipe_file, tmp_path / "run", overrides=["finish.size=small"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ("25%", "30%", True),
        ("4MB", "5000KB", True),
        ("1M", "2M", True),
        ("25%", "25%", False),
        ("25%", "90MB", False),
        ("4MB", "1M", False),
    ],
)
def test_a_model_that_has_read_is_not_made_larger(before, after, refused):
    assert grows(before, after) is refused


def test_a_size_to_finish_at_above_the_one_before_is_refused_before_anything_is_made(recipe_file, tmp_path):
    with pytest.raises(InputError, match=r"^finish\.size=70% is above compress\.size=60%"):
        run(recipe_file, tmp_path / "run", overrides=["finish.size=70%"])
    assert not (tmp_path / "run").exists()


def test_a_size_at_which_reading_may_teach_little_is_pointed_out(recipe_file, monkeypatch):
    lines = []
    monkeypatch.setattr(sys.modules["quasitile.run"], "say", lines.append)
    small, finished = ["compress.size=6%"], ["compress.size=6%", "finish.size=5%"]
    for changes, told in ((small, True), (finished, False), (["compress.size=6.25%"], False), ([], False)):
        hint_at_finish(load_recipe(recipe_file, changes))
        assert any("finish.size=6%" in line for line in lines) is told
        lines.clear()


def test_another_recipe_is_refused(finished, recipe_file):
    with pytest.raises(InputError, match=r"run of another recipe \(it differs in compress\)"):
        run(recipe_file, finished[0], overrides=["compress.size=50%"])


def test_a_folder_with_other_things_is_refused(recipe_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is no run folder"):
        run(recipe_file, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_killed_run_goes_on_where_it_stopped(finished, recipe_file, tmp_path):
    """Kill it in the middle, let it finish, and compare the models with those of an undisturbed run."""
    out = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["quasitile.run"])

    def stages():
        return len(list(out.glob("*/provenance.json")))

    for wanted in (4, 99):
        process = context.Process(target=run, args=(recipe_file, out))
        process.start()
        before, deadline = stages(), time.monotonic() + 150
        while process.is_alive() and stages() < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        if wanted < 99:
            time.sleep(0.3)  # into the next stage
            assert process.is_alive()
            process.kill()
        process.join()
        assert stages() >= before
    assert process.exitcode == 0
    file = "model-00001-of-00001.safetensors"
    assert (out / "adapted" / file).read_bytes() == (finished[0] / "adapted" / file).read_bytes()
    assert load_recipe(out / "recipe.yaml") == ready_to_learn(load_recipe(recipe_file))


def test_the_public_functions_are_the_commands():
    commands = ("run", "inspect", "sample", "compress", "align", "read", "adapt", "evaluate", "report")
    assert all(callable(getattr(quasitile, name)) for name in commands)
