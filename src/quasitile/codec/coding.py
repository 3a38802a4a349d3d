"""How a matrix is coded."""

from __future__ import annotations

from dataclasses import dataclass

DAMPING_OF_FEW_TOKENS = 2.0  # times columns over tokens


@dataclass(frozen=True)
class Coding:
    """How a matrix is coded.

    Attributes:
        transform: Of the factors, see `spectrum.TRANSFORMS`.
        threshold: Dead zone of the factors' coefficients, in steps.
        max_rank: A limit for every tile's rank; with a residual, nothing means 0.
        price: See `factors.kept_rank`.
        feedback: Let column bands make up for what later ones lost (factors alone).
        damping: Share of the mean second moment added to its diagonal; with a residual of `identity` alone, of each
            diagonal entry, and more where the second moment is of few tokens.
        num_tokens: That the second moments are of; 0 for so many that they are exact.
        residual: Transform of the residual's tiles, or nothing for no residual. `identity` is coded
            with feedback between single columns, others with feedback between column bands.
        residual_threshold: Dead zone of the residual, in steps; without a trellis.
        num_states: Of the trellis of a residual of `identity`, see `machine`; 1 for none.
        row_damping: Share of the mean output gradient added to every row's.
        truncation: Rule for the coefficients of the factors and of a residual in a transform other
            than `identity`, see `spectrum.TRUNCATIONS`.
        keep: What the rule keeps, see `spectrum.Truncation`.
        ranks: Who decides the rank of a tile: `priced` (`factors.kept_rank`), `share` (so many that its factors
            have `factor_share` of the tile's numbers, at least 1) or `fixed` (`max_rank`).
        factor_share: See `ranks`.
        residual_part: Which entries a residual of `identity` has, see `residual.kept_entries`.
        residual_share: How many.
        alternations: Rounds in which the residual and the factors are fitted in turn to what the
            other leaves; 0 fits the factors first and once.
        inputs: What is known of the inputs, a name in `INPUTS`.
        prices: What is known of the outputs, a name in `PRICES`.
        factor_first: Slice one factorisation of the whole matrix by the tiles' rows and columns, instead of one a tile.
        svd: See `factors.whitened_svd`.
        axes: What the columns are turned to first, one of `axes.AXES`, or nothing.
        span: See `axes.chosen_axes`.
    """

    transform: str = "dct"
    threshold: float = 0.5
    max_rank: int | None = None
    price: float = 1.0
    feedback: bool = True
    damping: float = 0.01
    num_tokens: int = 0
    residual: str | None = None
    residual_threshold: float = 0.5
    num_states: int = 1
    row_damping: float = 0.0
    truncation: str = "threshold"
    keep: float = 1.0
    ranks: str = "priced"
    factor_share: float = 1.0
    residual_part: str = "all"
    residual_share: float = 1.0
    alternations: int = 0
    inputs: str = "correlated"
    prices: str = "rows"
    factor_first: bool = False
    svd: str = "auto"
    axes: str | None = None
    span: str = "band"

    def damping_of(self, num_columns: int) -> float:
        """The share for a residual of `identity` alone and so many columns."""
        return self.damping + (DAMPING_OF_FEW_TOKENS * num_columns / self.num_tokens if self.num_tokens else 0.0)

    def fixed_rank(self, shape: tuple[int, int]) -> int | None:
        """The rank that a tile of shape (P, Q) has in any case, or nothing where its price decides."""
        if self.ranks == "priced":
            return None
        by_share = max(1, int(self.factor_share * shape[0] * shape[1] / (shape[0] + shape[1])))
        return by_share if self.ranks == "share" else self.max_rank

    @property
    def _plain_residual(self) -> bool:
        return self.residual == "identity" and self.residual_part == "all" and not self.alternations

    @property
    def trellis(self) -> int:
        """States of the trellis that is used: only a residual of `identity`, coded once and whole, has one."""
        return self.num_states if self._plain_residual else 1

    @property
    def entries_only(self) -> bool:
        """Whether every entry is rounded once and nothing is decomposed: the default."""
        return self._plain_residual and not self.has_factors

    @property
    def has_factors(self) -> bool:
        """Whether there are factors beside a residual."""
        return self.ranks == "share" or bool(self.max_rank)
