import os
import random
from pathlib import Path

import pytest
import torch

from quasitile.evaluate.entities import Sentence, read_conll
from quasitile.evaluate.probe import entity_f1, fit, predict, with_neighbours, word_ends, word_states

ENTITIES = {"Pt": "B-MAT", "SiO2": "B-MAT", "eV": "B-UNIT", "nm": "B-UNIT"}
OTHERS = ["is", "of", "the", "growth", "and"]


def sentences(count, seed, shuffled=False):
    """Words whose label is known from the word, "oxide" continuing a material; or with labels drawn at random."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        words = rng.choices([*ENTITIES, *OTHERS], k=rng.randint(3, 9))
        labels = [ENTITIES.get(word, "O") for word in words]
        for place in [place for place, word in enumerate(words) if word == "Pt"][::-1]:
            words.insert(place + 1, "oxide")
            labels.insert(place + 1, "I-MAT")
        if shuffled:
            rng.shuffle(labels)
        made.append(Sentence("paper", tuple(words), tuple(labels)))
    return made


def test_what_the_words_tell_is_found(make_model, tokenizer):
    model = make_model(spread=0.02)
    report = entity_f1(model, tokenizer, sentences(150, 0), sentences(40, 1), ridge=1e-4)
    assert report["f1"] == 1
    assert set(report["by_label"]) == {"MAT", "UNIT"}


def test_shuffled_labels_are_not_learnt(make_model, tokenizer):
    model = make_model(spread=0.02)
    assert entity_f1(model, tokenizer, sentences(150, 0, shuffled=True), sentences(40, 1), ridge=1e-4)["f1"] < 0.3


def test_streamed_ridge_equals_the_textbook(model):
    torch.manual_seed(0)
    # features far from zero and of very different size, as hidden states have them
    sizes = [7, 1, 12, 30, 3]
    states = [
        torch.randn(size, 4) * torch.tensor([1.0, 100.0, 0.01, 3.0]) + torch.tensor([50.0, -1000.0, 0.0, 2.0]) for size in sizes
    ]
    names = ["B-A", "I-A", "O"]
    labels = [[names[place % 3] for place in range(size)] for size in sizes]
    probe = fit([(states[:3], labels[:3]), (states[3:], labels[3:])], names, ridge=0.1)

    features = torch.cat([with_neighbours(words) for words in states]).double()
    targets = torch.nn.functional.one_hot(torch.tensor([names.index(name) for own in labels for name in own]), 3).double()
    mean, deviation = features.mean(0), features.std(0, correction=0)
    standard = (features - mean) / deviation
    gram = standard.T @ standard / len(features) + 0.1 * torch.eye(12)
    weights = torch.linalg.solve(gram, standard.T @ (targets - targets.mean(0)) / len(features)) / deviation[:, None]
    torch.testing.assert_close(probe.weights.double(), weights, rtol=1e-3, atol=1e-5)
    predicted = (features @ weights + targets.mean(0) - mean @ weights).argmax(1)
    raw = torch.cat([with_neighbours(words) for words in states]) @ probe.weights + probe.offset
    assert torch.equal(raw.argmax(1), predicted)
    assert len(predict(probe, states[0])) == 7


def test_a_word_is_its_last_token(tokenizer):
    tokens, ends = word_ends(tokenizer, ["Pt", "μm", "x"], 100)
    assert tokenizer.decode(tokens) == "Pt μm x"
    assert ends.tolist() == [1, 5, 7]
    assert word_ends(tokenizer, ["Pt", "μm", "x"], 4)[1].tolist() == [1, 3, -1]


@torch.no_grad()
def test_states_are_those_of_the_sentence_alone(model, tokenizer):
    data = sentences(9, 5)
    batches = word_states(model, tokenizer, data, 200, 120)
    found = {index: states for batch, all_states in batches for index, states in zip(batch, all_states, strict=True)}
    assert sorted(found) == list(range(9))
    for index, sentence in enumerate(data):
        tokens, ends = word_ends(tokenizer, sentence.words, 200)
        hidden = model(torch.tensor([[0, *tokens]]), output_hidden_states=True).hidden_states
        expected = torch.cat([hidden[2], hidden[3]], -1)[0, ends + 1]
        torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-4)


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ValueError, match="no word"):
        fit([], ["O"], 0.1)


@pytest.mark.skipif("QUASITILE_DATA" not in os.environ, reason="needs the development data")
def test_mulms_is_read():
    folder = Path(os.environ["QUASITILE_DATA"]) / "mulms"
    train, test = (read_conll(folder / f"ner.{split}.conll") for split in ("train", "test"))
    assert (len(train), len(test)) == (7487, 1104)
    assert {sentence.document for sentence in train}.isdisjoint({sentence.document for sentence in test})
