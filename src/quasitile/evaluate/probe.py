"""A linear probe: how much of an annotation can be read off a frozen model's hidden states.

A word is represented by the hidden states of its last token, from a middle and the last layer, and
by those of its neighbours. Ridge regression maps that to the BIO labels in closed form, so that the
result depends on the model and the data only, not on a training run.

Shapes: N words, F features of a word, W = 3 F features with both neighbours, L labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from quasitile.evaluate.batches import by_length, inference, pad_token, padded, start_token, window_length
from quasitile.evaluate.entities import Sentence, entity_scores, repaired

SMALLEST_DEVIATION = 1e-6  # of a feature that hardly varies


class Probe(NamedTuple):
    """Weights (W, L) and offset (L,) of the regression, and the label of each column."""

    weights: Tensor
    offset: Tensor
    labels: tuple[str, ...]


def entity_f1(
    model: Any, tokenizer: Any, train_sentences: Sequence[Sentence], test_sentences: Sequence[Sentence], *,
    ridge: float = 0.01, length: int = 512, max_tokens: int = 4096,
) -> dict[str, Any]:  # fmt: skip
    """Fit a probe on some sentences and score its entities on others (`entity_scores`).

    Args:
        model: A causal language model; it is not changed.
        tokenizer: Its tokenizer, of the fast kind (with character offsets).
        train_sentences: What the probe learns from.
        test_sentences: What it is scored on.
        ridge: The penalty, as a share of the variance of a feature.
        length: Tokens of a sentence that are read. Words beyond have no features.
        max_tokens: Tokens of a batch.

    Raises:
        ValueError: There is nothing to learn from.
    """
    limit = window_length(model, length)
    batches = ((states, [train_sentences[index].labels for index in batch])
               for batch, states in word_states(model, tokenizer, train_sentences, limit, max_tokens))  # fmt: skip
    labels = sorted({label for sentence in train_sentences for label in sentence.labels})
    probe = fit(batches, labels, ridge)
    predicted: list[list[str]] = [[] for _ in test_sentences]
    for batch, states in word_states(model, tokenizer, test_sentences, limit, max_tokens):
        for index, words in zip(batch, states, strict=True):
            predicted[index] = predict(probe, words)
    return entity_scores([sentence.labels for sentence in test_sentences], predicted)


def word_states(
    model: Any, tokenizer: Any, sentences: Sequence[Sentence], length: int, max_tokens: int
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Batches of sentence indices with the states (N, F) of each sentence's words, in float32.

    A sentence is read as its words with a space between, behind the start token. Only the body of
    the model runs, not its output head.
    """
    start = start_token(tokenizer)
    encoded = [word_ends(tokenizer, sentence.words, length - 1) for sentence in sentences]
    for batch in by_length([len(tokens) for tokens, _ in encoded], len(sentences), max_tokens):
        rows = [[start, *encoded[index][0]] for index in batch]
        tokens, mask = padded(rows, pad_token(tokenizer))
        with inference(model) as device:
            output = model.base_model(
                input_ids=tokens.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
            )
            hidden = output.hidden_states
            features = torch.cat([hidden[len(hidden) // 2], hidden[-1]], -1).float()
        yield batch, [_at_ends(features[row, 1:], encoded[index][1]) for row, index in enumerate(batch)]


def word_ends(tokenizer: Any, words: Sequence[str], length: int) -> tuple[list[int], Tensor]:
    """The first `length` token ids of the words joined by spaces, and each word's last token, -1 where it was cut off."""
    encoding = tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    stops = np.cumsum([len(word) + 1 for word in words]) - 1  # where each word ends in the text
    ends = torch.full((len(words),), -1)
    for place, (begin, end) in enumerate(encoding["offset_mapping"][:length]):
        if end > begin:
            ends[int(np.searchsorted(stops, end - 1, side="right"))] = place
    return encoding["input_ids"][:length], ends


def _at_ends(features: Tensor, ends: Tensor) -> Tensor:
    """The features (T, F) at each word's last token (N, F), zero for a word without one."""
    ends = ends.to(features.device)
    return features[ends.clamp_min(0)] * (ends >= 0)[:, None]


def with_neighbours(words: Tensor) -> Tensor:
    """The features (N, F) of the previous word, the word and the next one, (N, 3 F); zero past the ends."""
    nothing = words.new_zeros(1, words.shape[1])
    return torch.cat([torch.cat([nothing, words[:-1]]), words, torch.cat([words[1:], nothing])], 1)


def fit(batches: Iterable[tuple[list[Tensor], Sequence[Sequence[str]]]], labels: Sequence[str], ridge: float) -> Probe:
    """Ridge regression from features with neighbours to one-hot labels, in one pass over batches.

    Sums of products are float32 inside a batch and float64 across batches, of features shifted and
    scaled by the first batch's mean and deviation. The exact mean and deviation come out of the
    sums at the end, where the system is solved in float64.

    Args:
        batches: For each sentence of a batch the words' features (N, F) and labels (N,).
        labels: Every label that occurs.
        ridge: The penalty, as a share of the variance of a feature.

    Raises:
        ValueError: There is no word.
    """
    column = {label: place for place, label in enumerate(labels)}
    shift = scale = sums = None
    num_words = 0
    for states, words_labels in batches:
        features_NW = torch.cat([with_neighbours(words) for words in states])
        targets_NL = one_hot(torch.tensor([column[label] for labels in words_labels for label in labels]), len(labels))
        if shift is None or scale is None:
            shift, scale = features_NW.mean(0), features_NW.std(0, correction=0).clamp_min(SMALLEST_DEVIATION)
        features_NW = (features_NW - shift) / scale
        targets_NL = targets_NL.to(features_NW)
        # one product gives X^T X, X^T Y and, with a column of ones, the sums of X and of Y
        right = torch.cat([features_NW, targets_NL, features_NW.new_ones(len(features_NW), 1)], 1)
        product = torch.cat([features_NW.T @ right, right[:, -1:].T @ right]).double()
        sums = product if sums is None else sums + product
        num_words += len(features_NW)
    if shift is None or scale is None or sums is None:
        raise ValueError("the training sentences hold no word; give at least one sentence")
    width = len(shift)
    moments = sums / num_words  # (W + 1, W + L + 1)
    mean_W, mean_L = moments[-1, :width], moments[-1, width:-1]
    covariance_WW = moments[:-1, :width] - mean_W[:, None] * mean_W
    covariance_WL = moments[:-1, width:-1] - mean_W[:, None] * mean_L
    deviation_W = covariance_WW.diagonal().clamp_min(SMALLEST_DEVIATION**2).sqrt()
    covariance_WW = covariance_WW / deviation_W / deviation_W[:, None] + ridge * torch.eye(width).to(moments)
    factor = torch.linalg.cholesky(covariance_WW)
    weights_WL = torch.cholesky_solve(covariance_WL / deviation_W[:, None], factor) / (deviation_W * scale)[:, None]
    offset_L = mean_L - (mean_W * scale + shift) @ weights_WL
    return Probe(weights_WL.float(), offset_L.float(), tuple(labels))


def predict(probe: Probe, words: Tensor) -> list[str]:
    """The likeliest label of each word (N, F), repaired to well-formed BIO."""
    best = (with_neighbours(words) @ probe.weights + probe.offset).argmax(1)
    return repaired([probe.labels[place] for place in best.tolist()])
