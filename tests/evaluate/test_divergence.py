import copy

import pytest
import torch

from quasitile.evaluate.divergence import divergence, model_states, state_divergence

BATCHES = [torch.arange(24).reshape(2, 12) % 200, torch.arange(7)[None] + 40]


def naive_kl(student_TF, teacher_TF):
    """KL(teacher || student) over tokens, one by one, in float64."""
    total = 0.0
    for student, teacher in zip(student_TF.double(), teacher_TF.double(), strict=True):
        p, q = torch.softmax(teacher, 0), torch.softmax(student, 0)
        total += (p * (p.log() - q.log())).sum().item()
    return total


def test_a_model_does_not_diverge_from_itself(model):
    report = divergence(model, copy.deepcopy(model), BATCHES)
    assert report["logit_kl_nats"] == 0
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2, 3]
    assert all(layer["kl_nats"] == layer["relative_squared_error"] == 0 for layer in report["layers"])


@torch.no_grad()
def test_divergence_equals_a_float64_loop(model, other_model):
    report = divergence(other_model, model, BATCHES)
    num_tokens, kl, error, power, logit_kl = 31, [0.0] * 4, [0.0] * 4, [0.0] * 4, 0.0
    for tokens in BATCHES:
        ours, theirs = (each(tokens, output_hidden_states=True) for each in (other_model, model))
        logit_kl += naive_kl(ours.logits.flatten(0, 1), theirs.logits.flatten(0, 1))
        for layer, (mine, yours) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
            kl[layer] += naive_kl(mine.flatten(0, 1), yours.flatten(0, 1))
            error[layer] += (mine - yours).double().square().sum().item()
            power[layer] += yours.double().square().sum().item()
    assert report["logit_kl_nats"] == pytest.approx(logit_kl / num_tokens, rel=1e-4)
    for layer, row in enumerate(report["layers"]):
        assert row["kl_nats"] == pytest.approx(kl[layer] / num_tokens, rel=1e-4)
        assert row["relative_squared_error"] == pytest.approx(error[layer] / power[layer], rel=1e-4)


@torch.no_grad()
def test_the_last_layer_is_after_the_final_norm(model):
    states = next(model_states(model, BATCHES))
    torch.testing.assert_close(model.lm_head(states.hidden[-1]), states.logits)


def test_cached_states_stand_in_for_a_model(model, other_model):
    cached = list(model_states(model, BATCHES))
    assert state_divergence(model_states(other_model, BATCHES), cached) == divergence(other_model, model, BATCHES)


def test_models_of_other_shape_are_refused(model, make_model):
    with pytest.raises(ValueError, match="differ in shape"):
        divergence(make_model(layers=2), model, BATCHES)
    with pytest.raises(ValueError, match="no token"):
        divergence(model, model, [])
