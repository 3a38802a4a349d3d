"""How far a student's hidden states and next-token distributions are from a teacher's (paper Eq. 5).

Shapes: B rows of a batch, T tokens, D hidden features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quasitile.evaluate.batches import inference


class States(NamedTuple):
    """What a model makes of one batch: hidden states by layer, each (B, T, D), and logits (B, T, V).

    Layer 0 is the embedding's output; the last one is after the final norm.
    """

    hidden: tuple[Tensor, ...]
    logits: Tensor


def divergence(student: Any, teacher: Any, token_batches: Iterable[Tensor]) -> dict[str, Any]:
    """Compare two models on the same batches of token ids (B, T).

    Returns:
        `logit_kl_nats`, the mean over tokens of KL(teacher || student) over the vocabulary, and
        `layers`, for each layer `kl_nats`, the same over the softmax of the features (Eq. 5), and
        `relative_squared_error`, the squared difference over the teacher's squared norm. Zero for
        a model with itself. Softmaxes are float32, sums float64.

    Raises:
        ValueError: The models differ in layers, width or vocabulary.
    """
    batches = list(token_batches)
    return state_divergence(model_states(student, batches), model_states(teacher, batches))


def model_states(model: Any, token_batches: Iterable[Tensor]) -> Iterator[States]:
    """The states of a model, batch by batch; a list of them stands in for the model in `state_divergence`."""
    for tokens in token_batches:
        with inference(model) as device:
            output = model(input_ids=tokens.to(device), output_hidden_states=True, use_cache=False)
        yield States(tuple(output.hidden_states), output.logits)


def state_divergence(student: Iterable[States], teacher: Iterable[States]) -> dict[str, Any]:
    """`divergence` from the states of both models on the same batches.

    Raises:
        ValueError: There is no batch, or the states differ in shape.
    """
    num_tokens, logit_kl, layer_kl, error, power = 0, 0.0, 0.0, 0.0, 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        check_same_shape(ours, theirs)
        num_tokens += theirs.logits.shape[:2].numel()
        pairs = list(zip(ours.hidden, theirs.hidden, strict=True))
        logit_kl += softmax_kl(ours.logits, theirs.logits)
        layer_kl += torch.stack([softmax_kl(mine, yours) for mine, yours in pairs])
        error += torch.stack([squared(mine.float() - yours.to(mine.device).float()) for mine, yours in pairs])
        power += torch.stack([squared(yours.float()).to(mine.device) for mine, yours in pairs])
    if num_tokens == 0:
        raise ValueError("token_batches holds no token; give at least one batch")
    assert isinstance(layer_kl, Tensor)
    assert isinstance(error, Tensor)
    assert isinstance(power, Tensor)
    kl_nats, errors = (layer_kl / num_tokens).tolist(), (error / power.clamp_min(1e-30)).tolist()
    layers = [
        {"layer": layer, "kl_nats": kl, "relative_squared_error": share}
        for layer, (kl, share) in enumerate(zip(kl_nats, errors, strict=True))
    ]
    return {"logit_kl_nats": float(logit_kl / num_tokens), "layers": layers}


def softmax_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over tokens of KL(softmax(teacher) || softmax(student)) over the last dimension, in nats."""
    log_p = teacher.to(student.device).float().log_softmax(-1)
    log_q = student.float().log_softmax(-1)
    # rounding may leave a KL of -1e-8 where the distributions agree
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0).double().sum()


def squared(values: Tensor) -> Tensor:
    """The sum of squares."""
    return values.square().double().sum()


def check_same_shape(student: States, teacher: States) -> None:
    """Refuse states that cannot be compared.

    Raises:
        ValueError: Layers, width or vocabulary differ.
    """
    shapes = [[tuple(state.shape) for state in (*states.hidden, states.logits)] for states in (student, teacher)]
    if shapes[0] != shapes[1]:
        ours, theirs = (f"{len(shape) - 2} layers of width {shape[0][-1]}, vocabulary {shape[-1][-1]}" for shape in shapes)
        raise ValueError(f"student ({ours}) and teacher ({theirs}) differ in shape; compare a model with what it was made from")
