import itertools
import math

import pytest
import torch

from quasitile.evaluate.perplexity import spread_windows, text_loss, token_stream, windows

TEXTS = ["The band gap is 1.55 eV.", "", "Zr doping lowers it; μ-Raman shows 520 cm^-1.", "x" * 20]


def naive_nats(model, stream, length):
    """Every token by itself, from the tokens of its window before it."""
    total = 0.0
    for place in range(1, len(stream)):
        start = (place - 1) // length * length
        logits = model(torch.tensor([stream[start:place]])).logits[0, -1].double()
        total -= logits.log_softmax(-1)[stream[place]].item()
    return total


@pytest.mark.parametrize(("length", "batch_size"), [(16, 3), (7, 2), (1, 50), (500, 1)])
def test_loss_equals_a_token_by_token_loop(model, tokenizer, length, batch_size):
    stream = [0, *tokenizer.encode(TEXTS[0]), 0, *tokenizer.encode(TEXTS[2]), 0, *tokenizer.encode(TEXTS[3])]
    with torch.no_grad():
        nats = naive_nats(model, stream, length)
    report = text_loss(model, tokenizer, TEXTS, length=length, batch_size=batch_size)
    assert report["num_tokens"] == len(stream) - 1
    assert report["nats_per_token"] * report["num_tokens"] == pytest.approx(nats, rel=1e-5)
    assert report["perplexity"] == pytest.approx(math.exp(nats / (len(stream) - 1)), rel=1e-4)
    assert report["bits_per_character"] == pytest.approx(nats / math.log(2) / sum(map(len, TEXTS)), rel=1e-5)


def test_windows_predict_each_token_once():
    stream = list(range(30))
    targets = [token for batch in windows(stream, 4, 3) for row in batch.tolist() for token in row[1:]]
    assert targets == stream[1:]


@pytest.mark.parametrize("max_tokens", [1, 23, 24, 25, 26, 60, 1000])
def test_the_limit_counts_predicted_tokens_and_their_characters(tokenizer, max_tokens):
    texts = ["abcdefgh" * 3, "klm", "opq" * 5]  # 24, 3 and 15 tokens, and two separators
    stream, num_characters = token_stream(tokenizer, texts, max_tokens)
    assert len(stream) - 1 == min(max_tokens, 44)
    assert num_characters == sum(token != 0 for token in stream)


def test_a_long_window_is_cut_to_what_the_model_sees(model, tokenizer):
    text = ["ab" * 400]
    assert text_loss(model, tokenizer, text, length=10_000) == text_loss(model, tokenizer, text, length=256)


def test_training_mode_is_restored(model, tokenizer):
    model.train()
    text_loss(model, tokenizer, ["abc"])
    assert model.training
    model.eval()


def test_no_text_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="no token"):
        text_loss(model, tokenizer, ["", ""])


@pytest.mark.parametrize(("length", "max_tokens", "num_windows"), [(5, 20, 4), (5, 23, 4), (50, 9, 1), (10, 40, 4)])
def test_spread_windows_come_from_all_of_the_texts(tokenizer, length, max_tokens, num_windows):
    texts = ["".join(f"{number:04d} " for number in range(first, first + 10)) for first in range(0, 400, 10)]
    stream, _ = token_stream(tokenizer, texts)
    batches, num_characters = spread_windows(tokenizer, texts, length, max_tokens, 3)
    found = [row for batch in batches for row in batch.tolist()]
    every = [stream[start : start + min(length, max_tokens) + 1] for start in range(0, len(stream), min(length, max_tokens))]
    places = [every.index(row) for row in found]
    assert len(found) == num_windows
    assert places[0] == 0
    assert num_windows == 1 or places[-1] >= len(every) * (num_windows - 1) // num_windows - 1
    steps = {after - before for before, after in itertools.pairwise(places)}
    assert not steps or max(steps) - min(steps) <= 1  # evenly
    assert num_characters == sum(len(tokenizer.decode(row[1:])) for row in found)


def test_spread_windows_of_few_tokens_are_all_of_them(model, tokenizer):
    everything = text_loss(model, tokenizer, TEXTS, length=8)
    assert text_loss(model, tokenizer, TEXTS, length=8, max_tokens=10_000, spread=True) == everything


def test_a_spread_loss_is_the_mean_over_its_windows(model, tokenizer):
    report = text_loss(model, tokenizer, TEXTS, length=4, max_tokens=12, batch_size=2, spread=True)
    batches, _ = spread_windows(tokenizer, TEXTS, 4, 12, 1)
    with torch.no_grad():
        nats = [naive_nats(model, batch[0].tolist(), 4) for batch in batches]
    assert report["num_tokens"] == 12
    assert report["nats_per_token"] == pytest.approx(sum(nats) / 12, rel=1e-5)
