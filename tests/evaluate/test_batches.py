"""Rows of like length in batches, against every way to cut them."""

import random

import pytest

from quasitile.evaluate.batches import like_lengths


def all_cuts(count):
    """Every way to cut `count` rows into runs."""
    if not count:
        yield []
        return
    for first in range(1, count + 1):
        for rest in all_cuts(count - first):
            yield [first, *rest]


@pytest.mark.parametrize("pass_tokens", [0, 3, 20, 1000])
def test_rows_of_like_length_are_cut_where_it_costs_least(pass_tokens):
    rng = random.Random(pass_tokens)
    for count in range(1, 10):
        lengths = [rng.randint(1, 30) for _ in range(count)]
        batches = like_lengths(lengths, pass_tokens)
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        cost = sum(max(lengths[index] for index in batch) * len(batch) + pass_tokens for batch in batches)
        ordered, costs = sorted(lengths), []
        for cut in all_cuts(count):
            ends = [sum(cut[: place + 1]) for place in range(len(cut))]
            costs.append(sum(ordered[end - 1] * size + pass_tokens for end, size in zip(ends, cut, strict=True)))
        assert cost == min(costs)
    assert like_lengths([], 5) == []
