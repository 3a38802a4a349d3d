"""U and V of a tile (paper Eq. 1-3), rounded in the frequency domain with one step for everything.

Damage model (docs/mathematics.md): for a layer `y = W x` with second moment `H = E[x x^T]` of the
inputs and mean squares `g` of the outputs' gradients, an error E of the weight costs about
`1/2 tr(diag(g) E H E^T)` nats a token. Rows are scaled by `sqrt(g)` and columns by `sqrt(diag H)`
first, so that the damage of a tile is `1/2 ||E L||^2`, where `L L^T` is the scaled second moment;
then one rounding step for the whole model makes every stored number cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from quasitile.codec.block import Block, symbols
from quasitile.codec.spectrum import Truncation, basis

BITS_OF_COMPONENT = 32  # its scale and two spreads
MAX_CODE = 32767
SCALE_OCTAVE = 4  # row and column scales are powers of 2^(1/4)
SCALE_CENTRE = 128
OVERSAMPLING, POWER_ITERATIONS = 16, 4  # of the randomised decomposition
LARGE_TILE = 512  # shorter side from which `auto` decomposes by random projection where few components are wanted
SVDS = ("auto", "exact", "randomised")


def scale_codes(values: Tensor) -> Tensor:
    """The nearest representable scale of each positive value, as a uint8 code."""
    octaves = values.double().clamp_min(1e-30).log2() * SCALE_OCTAVE
    return (octaves.round() + SCALE_CENTRE).clamp(0, 255).to(torch.uint8)


def scale_values(codes: Tensor) -> Tensor:
    """The scales that codes stand for: `2^((code - 128) / 4)`, float32."""
    return torch.exp2((codes.float() - SCALE_CENTRE) / SCALE_OCTAVE)


def damped_cholesky(second_moment: Tensor, damping: float = 0.01, dtype: torch.dtype = torch.float64) -> Tensor:
    """Lower L with `L L^T = H + damping * mean(diag H) I`; H may be singular.

    Args:
        second_moment: (N, N) symmetric positive semi-definite, any float type.
        damping: A share of the mean diagonal.
        dtype: Of the arithmetic, except where it finds no factor: then that is computed in float64.
    """
    moment = second_moment.to(dtype, copy=True)
    mean = moment.diagonal().mean().clamp_min(1e-30)
    moment.diagonal().add_(damping * mean)
    lower, info = torch.linalg.cholesky_ex(moment)
    if int(info) == 0:
        return lower
    values, vectors = torch.linalg.eigh(second_moment.double())  # rounding made it indefinite
    root = vectors * (values.clamp_min(0) + damping * mean.double()).sqrt()
    upper = torch.linalg.qr(root.T).R
    return (upper.T * upper.diagonal().sign()).to(dtype)


def whitened_svd(
    matrix: Tensor, whitener: Tensor, svd: str = "exact", rank: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of `matrix @ whitener`, undone in V.

    Args:
        matrix: (P, Q).
        whitener: (Q, Q) lower triangular.
        svd: One of `SVDS`. `auto` is randomised for sides of `LARGE_TILE` and more where at most a quarter of the
            components are wanted.
        rank: How many components are wanted; nothing means all, exactly.

    Returns:
        `U (P, R)`, `singular_values (R,)`, `V (Q, R)` with `matrix = U diag(s) V^T` and
        `whitener^T V` orthonormal: truncation is optimal for `||E whitener||` (Eckart-Young).
    """
    side, wanted = min(matrix.shape), min(matrix.shape) if rank is None else rank
    few = svd == "randomised" or (svd == "auto" and side >= LARGE_TILE and 4 * wanted <= side)
    if few and wanted + OVERSAMPLING < side:
        u, s, vh = randomised_svd(matrix @ whitener, wanted)
    else:
        u, s, vh = torch.linalg.svd(matrix @ whitener, full_matrices=False)
    return u, s, torch.linalg.solve_triangular(whitener.T, vh.T, upper=True)


def randomised_svd(matrix: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `rank` components `U, s, V^T` by random projection and power iterations (Halko, Martinsson and Tropp).

    The same for the same seed; the squared error is within a few per cent of the least even where singular values
    hardly fall.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], min(rank + OVERSAMPLING, *matrix.shape), dtype=matrix.dtype, generator=generator)
    spanning = torch.linalg.qr(matrix @ start)[0]
    for _ in range(POWER_ITERATIONS):
        spanning = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ spanning)[0])[0]
    u, s, vh = torch.linalg.svd(spanning.T @ matrix, full_matrices=False)
    return (spanning @ u)[:, :rank], s[:rank], vh[:rank]


@cache
def _rounded_normal() -> tuple[Tensor, Tensor, Tensor]:
    """log2 of the spread of a normal variable, and entropy (bits) and log2 of the root mean square once it is rounded."""
    log_spread = torch.linspace(-5, 5, 401, dtype=torch.float64)
    values = torch.arange(-400, 400, dtype=torch.float64)
    edges = torch.arange(-400, 401, dtype=torch.float64) - 0.5
    mass = torch.special.ndtr(edges / torch.exp2(log_spread)[:, None]).diff(dim=1).clamp_min(1e-300)
    return log_spread, -(mass * mass.log2()).sum(1), 0.5 * (mass * values.square()).sum(1).log2()


def spread_before_rounding(root_mean_square: Tensor) -> Tensor:
    """The spread of the normal variable whose rounded values have this root mean square."""
    log_spread, _, log_rounded = _rounded_normal()
    wanted = root_mean_square.double().clamp_min(1e-30).log2()
    right = torch.searchsorted(log_rounded, wanted).clamp(1, len(log_rounded) - 1)
    share = (wanted - log_rounded[right - 1]) / (log_rounded[right] - log_rounded[right - 1])
    inside = log_spread[right - 1] + share.clamp(0, 1) * (log_spread[right] - log_spread[right - 1])
    return torch.where(wanted > log_rounded[-1], wanted, inside).exp2()


def rounded_normal_bits(spread: Tensor) -> Tensor:
    """Entropy in bits of `round(x)` for normal x of standard deviation `spread`.

    Within 0.01 bit; above 2^5 by the formula for small steps.
    """
    grid, bits, _ = _rounded_normal()
    place = (spread.double().clamp_min(2**-5).log2() - grid[0]) / (grid[1] - grid[0])
    low = place.floor().clamp(0, len(grid) - 2).long()
    inside = bits[low] + (place - low) * (bits[low + 1] - bits[low])
    formula = spread.double().clamp_min(1e-30).log2() + 0.5 * math.log2(2 * math.pi * math.e)
    return torch.where(spread > 2**5, formula, inside)


def code_bits(codes: Tensor) -> float:
    """Entropy of a factor's codes (rows x R) under the distributions that `pack` gives them, in bits."""
    spread = spread_before_rounding(codes.double().square().mean(0).sqrt())
    return float(rounded_normal_bits(spread).sum()) * codes.shape[0]


def factor_bits(block: Block) -> float:
    """About the bits of a block's factors."""
    return sum(code_bits(codes) for codes in (block.left, block.right) if codes.numel()) + BITS_OF_COMPONENT * block.rank


def paying(
    singular_values: Tensor, right_norms: Tensor, shape: tuple[int, int], step: float, mean_moment: float, price: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Which components pay for their bytes at this step (R,), and about how many bits each takes (R,).

    A component is kept while its share of the squared error exceeds the price of its bits, at the
    exchange rate that rounding itself pays: `step^2 ln(2) / 6` for a bit.

    Args:
        singular_values: (R,) of the whitened tile.
        right_norms: (R,) Euclidean norms of V's columns.
        shape: (P, Q).
        step: The rounding step of the whole model.
        mean_moment: Mean diagonal of the tile's second moment.
        price: More than 1 asks more of a component, so that fewer components are stored more finely.
    """
    num_rows, num_columns = shape
    left_spread = singular_values / (math.sqrt(num_rows) * step)
    right_spread = right_norms * singular_values * math.sqrt(mean_moment / num_columns) / step
    bits = num_rows * rounded_normal_bits(left_spread) + num_columns * rounded_normal_bits(right_spread) + BITS_OF_COMPONENT
    bit_price = price * step**2 * math.log(2) / 6
    rounding = (num_rows + num_columns) * step**2 / 12
    return singular_values.double().square() > bit_price * bits + rounding, bits


def kept_rank(
    singular_values: Tensor,
    right_norms: Tensor,
    shape: tuple[int, int],
    step: float,
    mean_moment: float,
    price: float = 1.0,
    fixed: int | None = None,
) -> tuple[int, float]:
    """How many leading components pay for their bytes, and about how many bits they take together; see `paying`.

    With `fixed`, so many components whether they pay or not, as far as there are any.
    """
    pays, bits = paying(singular_values, right_norms, shape, step, mean_moment, price)
    if fixed is not None:
        pays = (torch.arange(len(pays)) < fixed) & (singular_values > 1e-12 * singular_values[:1])
    rank = int(pays.long().cumprod(0).sum())
    return rank, float(bits[:rank].sum())


def encode_tile(
    target: Tensor,
    whitener: Tensor,
    step: float,
    transform: str,
    truncation: Truncation,
    max_rank: int | None,
    price: float = 1.0,
    fixed: int | None = None,
    svd: str = "exact",
) -> Block:
    """Factorise one tile, transform both factors, round and truncate them (tile first).

    V is rounded and truncated first; U is then solved again for what is left of V (least squares
    under the whitened norm), so that it takes up V's error, and rounded and truncated last.

    Args:
        target: (P, Q) float64.
        whitener: (Q, Q) lower triangular, float64.
        step: Rounding step of the left coefficients; the right ones get `step / s_k` over the root
            of the mean moment, which costs the same.
        transform: See `spectrum.TRANSFORMS`.
        truncation: What is dropped of each factor's coefficients; their frequencies run along its rows.
        max_rank: At most so many components, or no limit.
        price: See `paying`.
        fixed: See `kept_rank`.
        svd: See `whitened_svd`.
    """
    _left, values, right = whitened_svd(target, whitener, svd, fixed or max_rank)
    mean_moment = float(whitener.square().sum()) / len(whitener)
    rank, _ = kept_rank(values, right.norm(dim=0), (len(target), len(whitener)), step, mean_moment, price, fixed)
    rank = min(rank, max_rank) if max_rank is not None else rank
    right_step = step / (values[:rank] * math.sqrt(mean_moment))

    def solved(stored_right: Tensor) -> Tensor:
        return solve_left(target @ whitener, whitener.T @ stored_right)

    return _rounded(right[:, :rank], right_step, len(target), step, transform, truncation, solved)


def encode_slice(
    left: Tensor, right: Tensor, whitener: Tensor, step: float, transform: str, truncation: Truncation, price: float = 1.0
) -> Block:
    """Transform, round and truncate a tile's rows of U and V of the whole matrix (factor first, paper Eq. 2).

    Components that do not pay in this tile are left out; the others are rounded as they are.

    Args:
        left: (P, K) rows of U times the singular values.
        right: (Q, K) rows of V.
        whitener: (Q, Q) of the tile's columns.
        step: See `encode_tile`.
        transform: See `encode_tile`.
        truncation: See `encode_tile`.
        price: See `paying`.
    """
    if left.shape[1] > min(len(left), len(right)):  # more components than the tile's rank: the same product by fewer
        left, values, right = whitened_svd(left @ right.T, whitener)
        left = left * values
    weight = (whitener.T @ right).norm(dim=0).clamp_min(1e-30)
    left, right = left * weight, right / weight
    values, mean_moment = left.norm(dim=0), float(whitener.square().sum()) / len(whitener)
    keep, _ = paying(values, right.norm(dim=0), (len(left), len(right)), step, mean_moment, price)
    left, right = left[:, keep], right[:, keep]
    right_step = step / (left.norm(dim=0) * math.sqrt(mean_moment))
    return _rounded(right, right_step, len(left), step, transform, truncation, lambda _stored: left * right_step)


def _rounded(
    right: Tensor,
    right_step: Tensor,
    num_rows: int,
    step: float,
    transform: str,
    truncation: Truncation,
    left_for: Callable[[Tensor], Tensor],
) -> Block:
    """Round V (Q, R) in the frequency domain with a step a component, then the U that `left_for` gives for what is stored of V.

    `left_for` takes V in units of its step and gives U (P, R) such that U times it is the tile.
    """
    num_columns, rank = right.shape
    if rank == 0:
        return Block(torch.zeros(num_rows, 0), torch.zeros(num_columns, 0), torch.zeros(0))
    right_basis = basis(transform, num_columns, torch.float64)
    left_basis = basis(transform, num_rows, torch.float64)
    right_codes, right_exact = truncation.codes(right_basis @ right / right_step)
    right_codes = right_codes.clamp(-MAX_CODE, MAX_CODE)
    scale = (step * right_step).to(torch.bfloat16).double()
    left_codes, left_exact = truncation.codes(left_basis @ (left_for(right_basis.T @ right_codes) / scale))
    left_codes = left_codes.clamp(-MAX_CODE, MAX_CODE)
    remainders = symbols(left_exact - left_codes, right_exact - right_codes).float().clamp(-0.499, 0.499)
    return Block(left_codes.float(), right_codes.float(), scale.float(), remainders)


def solve_left(target: Tensor, right: Tensor) -> Tensor:
    """The U (P, R) that minimises `||target - U right^T||` for target (P, Q) and right (Q, R)."""
    gram = right.T @ right
    damping = 1e-9 * gram.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), right.T @ target.T).T
