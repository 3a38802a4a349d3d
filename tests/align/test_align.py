"""Alignment losses are distances, and alignment brings the compressed model closer without a byte more."""

import json
import math

import pytest
import torch

from quasitile import AlignSettings, InputError, align, compress, load_model
from quasitile.align.losses import hidden_error, hidden_kl, language_model_nats, logit_kl, mean_hidden_kl
from quasitile.align.train import make_trainable, train_step
from quasitile.checkpoint import stored_bytes
from quasitile.compress import CompressSettings
from quasitile.runtime import tiled_matrices


@pytest.fixture(scope="module", params=["none", "identity"], ids=["factors", "residual"])
def compressed(request, tmp_path_factory, model_folder, text_file):
    out = tmp_path_factory.mktemp("align") / "compressed"
    settings = {
        "size": "35%",
        "residual": request.param,
        "tiling": {"short": 16},
        "calibration": {"num_windows": 6, "num_tokens": 32},
        "workers": 1,
    }
    compress(model_folder, out, text=text_file, settings=CompressSettings.model_validate(settings))
    return out


def settings(**changes):
    return AlignSettings(**{"num_steps": 25, "batch_size": 8, "num_tokens": 32, "held_out_windows": 8, **changes})


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


def test_gradients_are_right_in_float64():
    teacher = torch.randn(1, 2, 5, dtype=torch.float64)

    def kl(student):  # the loss itself computes in float32; its formula is checked here in float64
        p, q = teacher.log_softmax(-1), student.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    student = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kl, (student,))
    expected = torch.autograd.grad(kl(student), student)[0]
    single = student.detach().float().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(hidden_kl(single, teacher.float()), single)[0].double(), expected, rtol=1e-4, atol=1e-5
    )


def test_the_mean_is_over_layers_and_their_number_must_agree():
    a, b = torch.zeros(1, 1, 2), torch.tensor([[[0.0, 2.0]]])
    assert float(mean_hidden_kl([a, b], [b, b])) == pytest.approx(float(hidden_kl(a, b)) / 2)
    with pytest.raises(ValueError, match="argument"):
        mean_hidden_kl([a], [a, b])


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    assert float(language_model_nats(torch.zeros(2, 5, 11), torch.ones(2, 5, dtype=torch.long))) == pytest.approx(math.log(11))


def test_alignment_lowers_the_divergence_within_the_same_bytes(compressed, model_folder, text_file, tmp_path):
    chosen = settings(learning_rate=0.05, num_steps=40)
    summary = align(compressed, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 40
    first, last = (sum(row["loss"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.9 * first
    assert stored_bytes(tmp_path / "out") <= stored_bytes(compressed)
    assert summary["num_tokens"] == 40 * 8 * 32
    assert math.isfinite(summary["damage_after_nats"])


def test_what_is_saved_is_the_model_in_memory(compressed, model_folder):
    student, _ = load_model(compressed)
    teacher, _ = load_model(model_folder)
    optimizer = make_trainable(student, settings())
    tokens = torch.arange(8, 72).view(2, 32)
    before = [train_step(student, teacher, tokens, optimizer, settings())["loss"] for _ in range(3)]
    assert all(math.isfinite(loss) for loss in before)
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
