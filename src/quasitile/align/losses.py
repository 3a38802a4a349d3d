"""Distances between what two models compute. Each is a mean over tokens and zero for equal inputs.

Shapes: B batch, T tokens, D hidden features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def hidden_kl(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """KL(teacher || student) of softmaxes over the features (paper Eq. 5), in nats."""
    teacher = teacher_BTD.float().log_softmax(-1)
    student = student_BTD.float().log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def mean_hidden_kl(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`hidden_kl` averaged over layers."""
    return torch.stack([hidden_kl(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def logit_kl(student_BTV: Tensor, teacher_BTV: Tensor) -> Tensor:
    """KL(teacher || student) of the next-token distributions, in nats."""
    return hidden_kl(student_BTV, teacher_BTV)


def hidden_error(student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
    """Squared error of the features relative to the teacher's power (the paper's feature-wise MSE)."""
    return (student_BTD.float() - teacher_BTD.float()).square().sum() / teacher_BTD.float().square().sum().clamp_min(1e-30)


def language_model_nats(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Next-token cross-entropy, in nats a token."""
    return nn.functional.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), tokens_BT[:, 1:].flatten())
