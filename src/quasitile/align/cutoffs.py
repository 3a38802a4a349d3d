"""Where the spectrum of each component ends, learned by gates under a price on bits (paper 3.2.1, learned cut-offs).

P frequencies, R components. Component r keeps frequencies below its cut-off c_r: a coefficient of frequency f is
multiplied by sigmoid((c_r - f - 1/2) / width) while training, and is there or not afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 1.5  # frequencies over which a gate closes
MARGIN = 4.0  # frequencies that a cut-off begins beyond the last one: nearly open
LEAST_BITS = 0.25  # of a coefficient that is kept, however small its component


class CutOffs(nn.Module):
    """The gates of one factor (P, R), everything kept at the start."""

    def __init__(self, num_frequencies: int, rank: int) -> None:
        super().__init__()
        self.cuts = nn.Parameter(torch.full((rank,), num_frequencies + MARGIN))
        self.num_frequencies = num_frequencies

    def gates(self) -> Tensor:
        """(P, R), between 0 and 1."""
        middle = torch.arange(self.num_frequencies, dtype=self.cuts.dtype, device=self.cuts.device) + 0.5
        return torch.sigmoid((self.cuts - middle[:, None]) / WIDTH)

    def kept(self) -> Tensor:
        """(P, R) which coefficients there are in the end."""
        return self.gates() >= 0.5

    def bits(self, coefficients: Tensor) -> Tensor:
        """What is kept, in bits: each gate times what a coefficient of its component takes.

        Args:
            coefficients: (P, R) in rounding steps; only the gates get gradients.
        """
        kept = self.kept().to(coefficients.dtype)
        power = (coefficients.detach().square() * kept).sum(0) / kept.sum(0).clamp_min(1)
        each = (0.5 * torch.log2(2 * torch.pi * torch.e * (power + 1 / 12))).clamp_min(LEAST_BITS)
        return (self.gates() * each).sum()
