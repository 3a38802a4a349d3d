"""Alignment losses are distances, and alignment brings the compressed model closer without a byte more."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, wasserstein_distance

from quasitile import AlignSettings, InputError, align, compress, load_model
from quasitile.align.losses import (
    DIVERGENCES,
    READINGS,
    hidden_error,
    hidden_kl,
    hidden_loss,
    language_model_nats,
    logit_kl,
    mean_hidden_kl,
    normal_density,
)
from quasitile.align.optimizer import make_trainable, optimizer_of
from quasitile.align.processes import Processes
from quasitile.align.teacher import LiveTeacher
from quasitile.align.train import Run
from quasitile.checkpoint import stored_bytes
from quasitile.compress import CompressSettings
from quasitile.runtime import tiled_matrices


@pytest.fixture(scope="module", params=["none", "identity"], ids=["factors", "residual"])
def compressed(request, tmp_path_factory, model_folder, text_file):
    out = tmp_path_factory.mktemp("align") / "compressed"
    settings = {
        "size": {"none": "35%", "identity": "15%"}[request.param],
        "residual": request.param,
        "tiling": {"short": 16},
        "calibration": {"num_windows": 6, "num_tokens": 32, "propagate": "original"},
        "workers": 1,
    }
    compress(model_folder, out, text=text_file, settings=CompressSettings.model_validate(settings))
    return out


def settings(**changes):
    amounts = {"num_steps": 25, "batch_size": 8, "num_tokens": 32, "held_out_windows": 8}
    return AlignSettings(**{**amounts, "learning_rate": 0.002, "hidden_weight": 0.05, **changes})


def test_hidden_kl_is_the_naive_sum():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for t in range(3):
            p = [math.exp(v) for v in teacher[b, t].tolist()]
            q = [math.exp(v) for v in student[b, t].tolist()]
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            total += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
    assert float(hidden_kl(student, teacher)) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("loss", [hidden_kl, logit_kl, hidden_error])
def test_a_loss_is_zero_for_equals_and_positive_otherwise(loss):
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(loss(x + torch.arange(7.0), x)) > 0.01


PAIRS = [(reading, divergence) for reading in READINGS for divergence in DIVERGENCES]


def states(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, 5, dtype=dtype, generator=generator), 0.5 + 2 * torch.randn(
        2, 6, 5, dtype=dtype, generator=generator
    )


HEAD = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def project(hidden):
    return hidden @ HEAD.to(hidden.dtype)


@pytest.mark.parametrize(("reading", "divergence"), PAIRS)
def test_every_hidden_loss_is_zero_for_equals_and_positive_otherwise(reading, divergence):
    student, teacher = states()
    assert float(hidden_loss([teacher], [teacher], divergence, reading, project)) == pytest.approx(0, abs=1e-9)
    assert float(hidden_loss([student], [teacher], divergence, reading, project)) > 0.001


@pytest.mark.parametrize(("reading", "divergence"), PAIRS)
def test_gradients_are_right_in_float64(reading, divergence):
    student, teacher = states()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hidden_loss([x], [teacher], divergence, reading, project), (student,), atol=1e-4)


def scipy_distance(divergence, p, q):
    if divergence == "kl":
        return entropy(q, p)
    if divergence == "js":
        return jensenshannon(p, q) ** 2
    if divergence == "w1":
        line = np.linspace(0, 1, len(p))
        return wasserstein_distance(line, line, p, q)
    return ((p - q) ** 2).sum()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("reading", ["features", "vocabulary"])
def test_categorical_losses_are_those_of_scipy(reading, divergence):
    student, teacher = states()
    through = project if reading == "vocabulary" else lambda hidden: hidden
    ours, theirs = (through(x).softmax(-1).flatten(0, 1).numpy() for x in (student, teacher))
    expected = np.mean([scipy_distance(divergence, p, q) for p, q in zip(ours, theirs, strict=True)])
    assert float(hidden_loss([student], [teacher], divergence, reading, project)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gaussian_losses_are_the_integrals(divergence):
    student, teacher = states()
    (m1, s1), (m2, s2) = (normal_density(x) for x in (student, teacher))
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    p, q = (torch.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)) for m, s in ((m1, s1), (m2, s2)))
    width = float(x[1] - x[0])
    middle, tiny = (p + q) / 2, 1e-300
    integrals = {
        "kl": (q * ((q + tiny).log() - (p + tiny).log())).sum(0) * width,
        "js": 0.5 * ((q * ((q + tiny) / (middle + tiny)).log()) + (p * ((p + tiny) / (middle + tiny)).log())).sum(0) * width,
        "w1": (p.cumsum(0) - q.cumsum(0)).abs().sum(0) * width * width,
        "mse": (m1 - m2) ** 2 + (s1 - s2) ** 2,
    }
    found = float(hidden_loss([student], [teacher], divergence, "gaussian"))
    assert found == pytest.approx(float(integrals[divergence].mean()), rel=2e-3)


def test_chosen_layers_and_temperature():
    a, b = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 2.0]]])
    assert float(hidden_loss([a, b], [b, b], layers=[0])) == pytest.approx(float(hidden_kl(a, b)))
    assert float(hidden_loss([a, b], [b, b], layers=[-1])) == 0
    with pytest.raises(ValueError, match="beyond the 2"):
        hidden_loss([a, b], [b, b], layers=[2])
    assert float(logit_kl(a, b, 2.0)) == pytest.approx(4 * float(hidden_kl(a / 2, b / 2)))


@pytest.mark.parametrize(("reading", "divergence"), PAIRS)
def test_a_step_of_alignment_works_with_every_loss(compressed, model_folder, reading, divergence):
    losses = some_steps(compressed, model_folder, settings(reading=reading, divergence=divergence, layers=[-2, -1]))[0]
    assert all(math.isfinite(value) for value in losses.values())
    assert losses[next(name for name in losses if name.startswith("hidden"))] > 0


def some_steps(compressed, model_folder, chosen, count=1):
    """The losses of the first steps on a text that counts upwards."""
    windows = torch.arange(8, 72).view(2, 32).repeat(chosen.held_out_windows + chosen.batch_size, 1)
    teacher = LiveTeacher(load_model(model_folder)[0], windows)
    student = load_model(compressed)[0]
    limit = sum(matrix.payload.numel() for matrix in tiled_matrices(student).values())
    run = Run(student, teacher, chosen, Processes(chosen.batch_size, 1), limit)
    return [run.step(step) for step in range(count)]


def test_the_mean_is_over_layers_and_their_number_must_agree():
    a, b = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 2.0]]])
    assert float(mean_hidden_kl([a, b], [b, b])) == pytest.approx(float(hidden_kl(a, b)) / 2)
    with pytest.raises(ValueError, match="argument"):
        mean_hidden_kl([a], [a, b])


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    assert float(language_model_nats(torch.zeros(2, 5, 11), torch.ones(2, 5, dtype=torch.long))) == pytest.approx(math.log(11))


def test_alignment_lowers_the_divergence_within_the_same_bytes(compressed, model_folder, text_file, tmp_path):
    chosen = settings(learning_rate=0.02, num_steps=40)
    summary = align(compressed, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    first, last = (sum(row["loss"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.9 * first
    assert stored_bytes(tmp_path / "out") <= stored_bytes(compressed)
    assert summary["num_tokens"] == 40 * 8 * 32
    assert math.isfinite(summary["damage_after_nats"])


def test_small_batches_learn_more_from_the_same_tokens(compressed, model_folder, text_file, tmp_path):
    def last(name, **changes):
        chosen = settings(learning_rate=0.01, price_bits=False, **changes)
        align(compressed, tmp_path / name, teacher=model_folder, text=text_file, settings=chosen)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return statistics.fmean(row["loss"] for row in rows[-len(rows) // 4 :])  # of text that no step has seen before

    few, many = last("few", num_steps=8, batch_size=16), last("many", num_steps=64, batch_size=2)
    assert many < 0.9 * few


def test_what_is_trained_is_what_is_stored(compressed):
    student, _ = load_model(compressed)
    make_trainable(student, settings())
    optimizer = optimizer_of(student, settings())
    tokens = torch.arange(8, 72).view(2, 32)
    for _ in range(3):
        optimizer.zero_grad()
        language_model_nats(student(tokens).logits, tokens).backward()
        optimizer.step()
    with torch.no_grad():
        trained = student(tokens).logits
        for matrix in tiled_matrices(student).values():
            matrix.pack()
        torch.testing.assert_close(student(tokens).logits, trained, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_model(compressed, model_folder, text_file, tmp_path):
    for name in ("a", "b"):
        align(compressed, tmp_path / name, teacher=model_folder, text=text_file, settings=settings(num_steps=2))
    file = "model-00001-of-00001.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_dense_model_and_too_little_text_are_refused(compressed, model_folder, text_file, tmp_path):
    with pytest.raises(InputError, match="is not compressed"):
        align(model_folder, tmp_path / "out", teacher=model_folder, text=text_file)
    with pytest.raises(InputError, match="fewer than"):
        align(compressed, tmp_path / "out", teacher=model_folder, text=text_file, settings=settings(batch_size=4000))
    assert not (tmp_path / "out").exists()
