"""Drawing what was learned back towards the start, until it costs no more general loss than it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GUESSES, MOST_TRIES = 3, 7  # by the square law, and with halvings of what is left
AIM, ENOUGH = 0.96, 0.9  # of the allowance


@torch.no_grad()
def draw_back(values: Sequence[Tensor], start: Sequence[Tensor], rise: Callable[[], float], allowed: float) -> float:
    """Keep as much of what was learned as is allowed, on the straight line from the start.

    What is forgotten grows with the square of the way, and most answers stay right until a quarter of it is taken back: so
    learning too much and drawing back teaches more than never learning too much (docs/results/learning-tried.md).

    Args:
        values: What learned; changed in place.
        start: What they were before.
        rise: Of general loss since the start, as the values are now.
        allowed: The largest rise.

    Returns:
        The share of the way that is kept, 1 where nothing had to be drawn back. The rise there is at most `allowed`, or
        the share is 0.
    """
    learned = [value.detach().clone() for value in values]

    def put(share: float) -> None:
        for value, before, after in zip(values, start, learned, strict=True):
            value.copy_(torch.lerp(before, after, share))

    cost, share, kept, too_much = rise(), 1.0, 0.0, 1.0
    if cost <= allowed:
        return share
    for number in range(MOST_TRIES):
        wanted, middle = share * (AIM * allowed / max(cost, 1e-9)) ** 0.5, (kept + too_much) / 2
        share = wanted if kept < wanted < too_much and number < GUESSES else middle
        put(share)
        cost = rise()
        if cost > allowed:
            too_much = share
            continue
        kept = share
        if cost >= ENOUGH * allowed:
            break
    put(kept)
    return kept
