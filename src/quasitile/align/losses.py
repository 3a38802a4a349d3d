"""Distances between what two models compute. Each is a mean over tokens and zero for equal inputs.

Shapes: B batch, T tokens, D hidden features, V vocabulary, L layers.

The paper's Eq. 5 compares the *distributions* of hidden states and does not say which. Three readings
of a hidden state as a distribution (`READINGS`) meet four divergences (`DIVERGENCES`); all twelve work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

NORMAL_NODES = 64  # of the quadrature for the Jensen-Shannon divergence of two normal distributions


def categorical_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of categorical distributions given as log-probabilities (..., K), in nats; (...)."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def categorical_js(student: Tensor, teacher: Tensor) -> Tensor:
    """Jensen-Shannon divergence of log-probabilities (..., K), in nats, at most log 2; (...)."""
    middle = torch.logaddexp(student, teacher) - torch.log(torch.tensor(2.0, dtype=student.dtype))
    return (categorical_kl(middle, teacher) + categorical_kl(middle, student)) / 2


def categorical_w1(student: Tensor, teacher: Tensor) -> Tensor:
    """Wasserstein-1 distance of log-probabilities (..., K), the categories on a line from 0 to 1; (...)."""
    difference = (student.exp() - teacher.exp()).cumsum(-1)
    return difference[..., :-1].abs().sum(-1) / max(1, student.shape[-1] - 1)


def categorical_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squared differences of probabilities, given as log-probabilities (..., K); (...)."""
    return (student.exp() - teacher.exp()).square().sum(-1)


CATEGORICAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": categorical_kl,
    "js": categorical_js,
    "w1": categorical_w1,
    "mse": categorical_mse,
}


def normal_density(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of each feature over all tokens of (B, T, D)."""
    flat = states.flatten(0, -2)
    return flat.mean(0), (flat.var(0, unbiased=False) + 1e-6 * flat.var() + 1e-12).sqrt()


def normal_kl(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """KL(teacher || student) of normal distributions (mean, deviation), in nats."""
    (mean, deviation), (goal, spread) = student, teacher
    return (deviation / spread).log() + (spread.square() + (goal - mean).square()) / (2 * deviation.square()) - 0.5


def normal_js(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Jensen-Shannon divergence of normal distributions, in nats, by Gauss-Hermite quadrature."""
    nodes, weights = hermite(NORMAL_NODES, student[0])
    halves = []
    for mean, deviation in (student, teacher):
        x = mean + deviation * nodes[:, None]
        ours, theirs = (-0.5 * ((x - m) / s).square() - s.log() for m, s in (student, teacher))
        own = -0.5 * nodes[:, None].square() - deviation.log()
        middle = torch.logaddexp(ours, theirs) - torch.log(torch.tensor(2.0, dtype=x.dtype))
        halves.append((weights[:, None] * (own - middle)).sum(0))
    return (halves[0] + halves[1]) / 2


def normal_w1(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Wasserstein-1 distance of normal distributions: the mean of |a + b z| for normal z."""
    shift, stretch = student[0] - teacher[0], (student[1] - teacher[1]).abs()
    ratio = shift / stretch.clamp_min(1e-12)
    folded = stretch * (2 / torch.pi) ** 0.5 * (-0.5 * ratio.square()).exp() + shift * torch.erf(ratio / 2**0.5)
    return torch.where(stretch > 1e-12, folded, shift.abs())


def normal_mse(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Squared difference of means and of deviations (the squared Wasserstein-2 distance)."""
    return (student[0] - teacher[0]).square() + (student[1] - teacher[1]).square()


NORMAL: dict[str, Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Tensor]] = {
    "kl": normal_kl,
    "js": normal_js,
    "w1": normal_w1,
    "mse": normal_mse,
}


def hermite(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (count,) that integrate against a standard normal density."""
    off = torch.arange(1, count, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))  # Golub and Welsch
    return nodes.to(like), vectors[0].square().to(like)


def by_features(divergence: str, student_BTD: Tensor, teacher_BTD: Tensor, _project: object = None) -> Tensor:
    """The softmax over features, as Eq. 5 is usually read."""
    return CATEGORICAL[divergence](precise(student_BTD).log_softmax(-1), precise(teacher_BTD).log_softmax(-1)).mean()


def by_vocabulary(divergence: str, student_BTD: Tensor, teacher_BTD: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """What the output head would predict from the state (the same head for both)."""
    student, teacher = precise(project(student_BTD)), precise(project(teacher_BTD))
    return CATEGORICAL[divergence](student.log_softmax(-1), teacher.log_softmax(-1)).mean()


def by_density(divergence: str, student_BTD: Tensor, teacher_BTD: Tensor, _project: object = None) -> Tensor:
    """A normal density for each feature over the batch's tokens; the mean over features."""
    return NORMAL[divergence](normal_density(precise(student_BTD)), normal_density(precise(teacher_BTD))).mean()


def precise(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


READINGS: dict[str, Callable[..., Tensor]] = {"features": by_features, "vocabulary": by_vocabulary, "gaussian": by_density}
DIVERGENCES = tuple(CATEGORICAL)


def hidden_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    divergence: str = "kl",
    reading: str = "features",
    project: Callable[[Tensor], Tensor] | None = None,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """Mean distance of the hidden states of chosen layers (paper Eq. 5).

    Args:
        student: (B, T, D) a layer, embedding first.
        teacher: Likewise.
        divergence: One of `DIVERGENCES`.
        reading: One of `READINGS`.
        project: Hidden states to logits, for `vocabulary`.
        layers: Indices into the sequences, negative ones from the end; all by default.

    Raises:
        ValueError: The numbers of layers differ, or an index is out of range.
    """
    pairs = list(zip(student, teacher, strict=True))
    try:
        chosen = pairs if layers is None else [pairs[index] for index in layers]
    except IndexError as error:
        raise ValueError(f"layers={list(layers or ())} name one beyond the {len(pairs)} that there are") from error
    return torch.stack([READINGS[reading](divergence, s, t, project) for s, t in chosen]).mean()


def hidden_kl(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxes over the features (paper Eq. 5), in nats."""
    return by_features("kl", student_BTD, teacher_BTD)


def mean_hidden_kl(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`hidden_kl` averaged over layers."""
    return hidden_loss(student, teacher)


def logit_kl(student_BTV: Tensor, teacher_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the next-token distributions at a temperature, times its square, in nats."""
    return temperature**2 * hidden_kl(student_BTV / temperature, teacher_BTV / temperature)


def top_k_kl(student_BTV: Tensor, ids_BTK: Tensor, log_probabilities_BTK: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) where of the teacher only the likeliest K next tokens are known, in nats.

    At temperature 1 all others count as one more token, so that this is a lower bound of the whole
    divergence and equals it for K = V. At other temperatures the others are left out on both sides.

    Args:
        student_BTV: Logits.
        ids_BTK: The likeliest tokens.
        log_probabilities_BTK: The teacher's, at temperature 1.
        temperature: Of both; the divergence is multiplied by its square.
    """
    student, teacher = precise(student_BTV), precise(log_probabilities_BTK)
    if temperature != 1:
        return logit_kl(student.gather(-1, ids_BTK), teacher, temperature)
    ours = student.log_softmax(-1).gather(-1, ids_BTK)
    return categorical_kl(with_rest(ours), with_rest(teacher)).mean()


def with_rest(log_probabilities: Tensor) -> Tensor:
    """(..., K) and what is left to 1 (..., K + 1); never less than rounding could leave."""
    rest = (1 - log_probabilities.exp().sum(-1, keepdim=True)).clamp_min(1e-9)
    return torch.cat([log_probabilities, rest.log()], -1)


def hidden_error(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Squared error of the features relative to the teacher's power (the paper's feature-wise MSE)."""
    return (student_BTD.float() - teacher_BTD.float()).square().sum() / teacher_BTD.float().square().sum().clamp_min(1e-30)


def language_model_nats(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Next-token cross-entropy, in nats a token."""
    following = tokens_BT[:, 1:].flatten().to(logits_BTV.device)
    return nn.functional.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), following)
