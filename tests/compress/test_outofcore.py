"""From the shards on disk: the same quality, the size met, and the same bytes whoever works and however often it is killed."""

import json
import multiprocessing
import os
import random
import signal
import sys

import pytest
import torch
from tests.compress.architectures import build

from quasitile import InputError, compress, load_model
from quasitile.checkpoint import stored_bytes
from quasitile.compress import CompressSettings
from quasitile.compress.from_shards import available_bytes, wants_stream
from quasitile.compress.tasks import sample
from quasitile.runtime import tiled_matrices
from quasitile.runtime.load import uncoded

BASE = {
    "size": "50%", "tiling": {"short": 16}, "workers": 1,
    "calibration": {"num_windows": 6, "num_tokens": 32, "batch_size": 4, "stream": "yes", "propagate": "original"},
}  # fmt: skip
CORRECTED = {"propagate": "corrected", "gradients": "midway"}  # goes through all that the others go through, and more
UNTIMED = ("provenance.json", "metrics.jsonl")  # what says when and how fast
NUM_KILLS = 20


def settings(calibration=None, **changes):
    return CompressSettings.model_validate({**BASE, **changes, "calibration": {**BASE["calibration"], **(calibration or {})}})


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in UNTIMED}


@pytest.fixture(scope="module")
def undisturbed(model_folder, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("outofcore") / "out"
    return out, compress(model_folder, out, text=text_file, settings=settings())


FORMS = {"plain": {}, "factors": {"residual": "none"}, "in numbers": {"size": "0.03M"}}


@pytest.mark.parametrize(
    ("form", "calibration"),
    [
        (FORMS["plain"], {"propagate": "original"}),
        (FORMS["plain"], {"propagate": "original", "gradients": "midway"}),
        (FORMS["factors"], {"propagate": "corrected"}),
        (FORMS["in numbers"], CORRECTED),
    ],
    ids=str,
)
def test_it_is_as_good_as_in_memory(model_folder, text_file, tmp_path, form, calibration):
    streamed, in_memory = (
        compress(
            model_folder,
            tmp_path / name,
            text=text_file,
            settings=settings({"stream": stream, **calibration}, **form),
        )
        for name, stream in (("streamed", "yes"), ("in_memory", "no"))
    )
    assert streamed.keys() == in_memory.keys()
    assert [row.keys() for row in streamed["matrices"]] == [row.keys() for row in in_memory["matrices"]]
    assert streamed["predicted_damage_nats"] <= 1.06 * in_memory["predicted_damage_nats"]
    assert streamed["stored_bytes"] == stored_bytes(tmp_path / "streamed")
    if streamed["target_bytes"]:
        assert 0.97 * streamed["target_bytes"] < streamed["stored_bytes"] <= streamed["target_bytes"]
    else:
        assert 0.98 * 30_000 < streamed["stored_parameters"] <= 30_000


def test_steps_sampled_together_give_what_each_gives_alone(model_folder, text_file, tmp_path, monkeypatch):
    module, seen = sys.modules["quasitile.compress.outofcore"], []

    def watched(task, steps):
        together = sample(task, steps)
        seen.append((together, [sample(task, (step,))[0] for step in steps]))
        return together

    monkeypatch.setattr(module, "sample", watched)
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(workers=1))
    assert len(seen) >= 15
    for together, alone in seen:
        for ours, theirs in zip(together, alone, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3)
        assert len(together) == 2
        assert together[0][0] < together[1][0]  # the coarser step takes fewer bytes


@pytest.mark.parametrize("name", ["mixtral"])
def test_what_is_written_opens_and_is_close(name, tokenizer, text_file, tmp_path):
    build(name, len(tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    compress(tmp_path / "model", tmp_path / "out", text=text_file, settings=settings(size="70%"))
    original, opened = load_model(tmp_path / "model")[0], load_model(tmp_path / "out")[0]
    before, after = uncoded(original), uncoded(opened)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    tokens = torch.arange(8, 72).view(4, 16)
    with torch.no_grad():
        expected, found = original(tokens).logits, opened(tokens).logits
    assert (found - expected).norm() < 0.05 * expected.norm()
    for matrix in tiled_matrices(opened).values():
        matrix.make_trainable()


def killed(how, number, model, text, out):
    """In another process: compress, and be killed in the middle."""
    count = 0

    def counted(original):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if count == number and how == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    if how == "clock":
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, number)
    else:  # files are put in place, and lines of the journal written, by these
        os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    os.environ["QUASITILE_QUIET"] = "1"
    from quasitile.progress import set_quiet

    set_quiet(True)
    torch.set_num_threads(1)
    compress(model, out, text=text, settings=settings(CORRECTED))


def test_killed_at_twenty_moments_it_ends_in_the_same_bytes(model_folder, text_file, tmp_path):
    compress(model_folder, tmp_path / "undisturbed", text=text_file, settings=settings(CORRECTED))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["quasitile.compress.pipeline", "tests.compress.test_outofcore"])
    out, generator = tmp_path / "out", random.Random(0)
    how = ["before", "after"] * 8 + ["clock"] * (NUM_KILLS - 16)
    generator.shuffle(how)
    killings = 0
    for way in [*how, "never"]:
        number = {"clock": generator.uniform(0.2, 0.8), "never": 0}.get(way, generator.randint(2, 9))
        process = context.Process(target=killed, args=(way, number, model_folder, text_file, out))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        killings += process.exitcode != 0
    assert process.exitcode == 0
    assert killings >= 16  # the clock may strike too late
    assert files_of(out) == files_of(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "undisturbed"]


def test_the_bytes_do_not_depend_on_the_workers(undisturbed, model_folder, text_file, tmp_path):
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(workers=2))
    found, expected = files_of(tmp_path / "out"), files_of(undisturbed[0])
    assert {name for name in found if found[name] != expected[name]} == {"recipe.yaml"}


def test_the_bytes_are_the_same_on_a_ray_cluster(undisturbed, model_folder, text_file, tmp_path):
    pytest.importorskip("ray")
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(workers=2, ray="local"))
    found, expected = files_of(tmp_path / "out"), files_of(undisturbed[0])
    assert {name for name in found if found[name] != expected[name]} == {"recipe.yaml"}


def test_without_ray_the_remedy_is_named(model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'quasitile\[ray\]'"):
        compress(model_folder, tmp_path / "out", text=text_file, settings=settings(ray="auto"))


def test_an_attempt_with_other_settings_begins_anew(undisturbed, model_folder, text_file, tmp_path):
    out, work = tmp_path / "out", tmp_path / ".out.partial" / "work"
    work.mkdir(parents=True)
    (work / "journal.jsonl").write_text(json.dumps({"purpose": "other"}) + '\n{"key": "calibrated"}\n')
    (work.parent / "model-00009-of-00009.safetensors").write_bytes(b"of an earlier attempt")
    compress(model_folder, out, text=text_file, settings=settings())
    assert files_of(out) == files_of(undisturbed[0])


def test_behind_coded_layers(undisturbed, model_folder, text_file, tmp_path):
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=settings({"propagate": "compressed"}))
    assert 0.97 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
    assert summary["predicted_damage_nats"] == pytest.approx(undisturbed[1]["predicted_damage_nats"], rel=0.3)
    name = "model-00001-of-00001.safetensors"
    assert (tmp_path / "out" / name).read_bytes() != (undisturbed[0] / name).read_bytes()
    model, _ = load_model(tmp_path / "out")
    assert len(tiled_matrices(model)) == 15


def test_moments_in_blocks(undisturbed, model_folder, text_file, tmp_path):
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=settings({"moment_bytes": 4096}))
    assert 0.97 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
    assert summary["predicted_damage_nats"] > undisturbed[1]["predicted_damage_nats"]


@pytest.mark.parametrize("size", ["1%", "5%"])
def test_a_size_that_cannot_be_met_is_refused_and_nothing_is_left(model_folder, text_file, tmp_path, size):
    with pytest.raises(InputError, match=r"cannot be met.*raise --size"):
        compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size=size))
    assert not list(tmp_path.iterdir())


def test_which_models_are_streamed(model_folder, monkeypatch):
    auto = settings({"stream": "auto"})
    assert not wants_stream(model_folder, auto)
    monkeypatch.setattr(sys.modules["quasitile.compress.from_shards"], "available_bytes", lambda: 100_000)
    assert wants_stream(model_folder, auto)
    assert not wants_stream(model_folder, settings({"stream": False}))  # YAML's no
    assert not wants_stream("a-name/on-the-hub", auto)
    for model, changes in (("a-name/on-the-hub", {}), (model_folder, {"tiling": {"name": "hierarchical", "short": 16}})):
        with pytest.raises(InputError, match="cannot be streamed"):
            wants_stream(model, settings({}, **changes))
    with pytest.raises(ValueError, match="propagate=compressed works layer by layer"):
        settings({"stream": "no", "propagate": "compressed"})
    assert available_bytes() > 10**6
