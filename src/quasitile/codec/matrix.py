"""A weight matrix as coded tiles and back: factors, their spectra, and the residual they leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quasitile.codec.axes import SORTED, Axes, chosen_axes, order_of_scales, pivoted_order
from quasitile.codec.block import Block, CodedMatrix, Tile, Tiling, empty_block, row_bands
from quasitile.codec.coding import Coding
from quasitile.codec.entropy import code_bits, fit
from quasitile.codec.factors import (
    damped_cholesky,
    encode_slice,
    encode_tile,
    factor_bits,
    scale_codes,
    scale_values,
    whitened_svd,
)
from quasitile.codec.residual import feedback_codes, kept_entries, spectral_codes
from quasitile.codec.spectrum import Truncation, basis
from quasitile.codec.trellis import search

# What calibration knows of the inputs, as (N, N) -> (N, N): everything, each one's power, or only their mean power.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "correlated": lambda moment: moment,
    "powers": lambda moment: moment.diagonal().diag(),
    "none": lambda moment: moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype),
}
# What an output's error costs, from its gradients (M,), the weight and the inputs' moment: a price a row, one for the
# matrix, or one that gives every matrix the same mean square and with it about the same bits a number.
PRICES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rows": lambda gradients, weight, moment: gradients,
    "matrices": lambda gradients, weight, moment: gradients.mean().expand(len(gradients)),
    "none": lambda gradients, weight, moment: (1 / ((weight @ moment) * weight).mean().clamp_min(1e-30)).expand(len(gradients)),
}


@dataclass(frozen=True)
class Scaled:
    """A matrix in the domain where one step costs the same everywhere.

    Attributes:
        weight: (M, N), float32 where entries are all that is rounded, else float64; so are the others.
        moment: (N, N) second moment of the scaled inputs.
        lower: (N, N) its damped Cholesky factor.
        row_codes: (M,) uint8, see `factors.scale_values`.
        column_codes: (N,) uint8.
    """

    weight: Tensor
    moment: Tensor
    lower: Tensor
    row_codes: Tensor
    column_codes: Tensor


def scaled(
    weight: Tensor, second_moment: Tensor, output_gradients: Tensor, coding: Coding, column_codes: Tensor | None = None
) -> Scaled:
    """Rows times the root of the output gradient; columns times the root of the moment, or its Cholesky diagonal.

    Args:
        weight: (M, N).
        second_moment: (N, N) of the inputs.
        output_gradients: (M,) mean squares of the gradient at each output.
        coding: Decides the damping, and by its residual which column scale is right.
        column_codes: (N,) of other column scales.
    """
    # Rounding single entries needs no more digits than the weights have; decompositions do.
    dtype = torch.float32 if coding.entries_only else torch.float64
    moment = INPUTS[coding.inputs](second_moment.to(dtype))
    gradients = PRICES[coding.prices](output_gradients.double(), weight.to(dtype), moment).double()
    row_codes = scale_codes((gradients + coding.row_damping * gradients.mean()).sqrt())
    lower, power = None, moment.diagonal()
    if coding.entries_only:  # damped by a share of each column's own power, or of a share of the mean where it has less
        root = power.clamp_min(coding.damping * float(power.mean()) + 1e-30).sqrt()
        lower = damped_cholesky((moment / root).div_(root[:, None]), coding.damping_of(len(power)), dtype).mul_(root[:, None])
        scale = lower.diagonal()
    else:
        scale = power.sqrt() if coding.residual is None else damped_cholesky(moment, coding.damping).diagonal()
    column_codes = scale_codes(scale) if column_codes is None else column_codes
    rows, columns = scale_values(row_codes).to(dtype), scale_values(column_codes).to(dtype)
    moment = (moment / columns).div_(columns[:, None])
    lower = damped_cholesky(moment, coding.damping) if lower is None else lower.div_(columns[:, None])
    return Scaled((weight.to(dtype) * rows[:, None]).mul_(columns), moment, lower, row_codes, column_codes)


def encode_matrix(
    weight: Tensor,
    tiling: Tiling,
    second_moment: Tensor,
    output_gradients: Tensor,
    step: float,
    coding: Coding | None = None,
    axes: Axes | None = None,
) -> tuple[CodedMatrix, float]:
    """Code a matrix at one rounding step.

    Args:
        weight: (M, N).
        tiling: Of the same shape.
        second_moment: (N, N) of the inputs.
        output_gradients: (M,) mean squares of the gradient at each output.
        step: Rounding step, in roots of nats; infinite for nothing at all.
        coding: See `Coding`.
        axes: What the columns are turned to, instead of those that `coding` asks for.

    Returns:
        The coded matrix, and its predicted damage in nats a token.
    """
    coding = coding or Coding()
    if axes is None and coding.axes not in (None, SORTED):
        axes = chosen_axes(coding.axes, coding.span, second_moment, tiling)
    if axes is not None:
        turned, moment = axes.coefficients(weight.double()), axes.moment(second_moment.double())
        problem = scaled(turned, moment, output_gradients, coding)
    elif coding.axes == SORTED:
        axes, problem = sorted_by_scale(weight, second_moment, output_gradients, coding)
    else:
        problem = scaled(weight, second_moment, output_gradients, coding)
    if coding.residual is None:
        blocks, damage = encode_factors(problem, tiling, step, coding)
    else:
        blocks, damage = encode_with_residual(problem, tiling, step, coding)
    ordered, codes = [blocks[tile] for tile in tiling.tiles], (problem.row_codes, problem.column_codes)
    coded = CodedMatrix(tiling, ordered, coding.transform, *codes, coding.residual or "identity", coding.trellis, axes=axes)
    if coding.inputs != "correlated" or coding.prices != "rows":
        damage = damage_nats(weight - decode_matrix(coded), second_moment, output_gradients)  # by all that is known
    return coded, damage


def sorted_by_scale(weight: Tensor, second_moment: Tensor, output_gradients: Tensor, coding: Coding) -> tuple[Axes, Scaled]:
    """The matrix with its columns in falling order of their scales, which is how the decoder knows the order.

    A column's scale is its spread given the columns before it; so the first are those that say most, and the last, which
    are rounded first, say little that these have not said.
    """
    moment = second_moment.double()
    power = moment.diagonal()
    order = pivoted_order(moment + torch.diag(coding.damping * (power + power.mean()) + 1e-30))
    codes = torch.empty(len(order), dtype=torch.uint8)
    codes[order] = scaled(weight[:, order], moment[order][:, order], output_gradients, coding).column_codes
    order = order_of_scales(codes)
    problem = scaled(weight[:, order], moment[order][:, order], output_gradients, coding, codes[order])
    return Axes(SORTED, (len(order),), (order,)), problem


def damage_nats(error: Tensor, second_moment: Tensor, output_gradients: Tensor) -> float:
    """What an error of the weight (M, N) costs, in nats a token: `1/2 tr(diag(g) E H E^T)`."""
    error = error.double()
    return 0.5 * float(((error @ second_moment.double()) * error).sum(1) @ output_gradients.double())


def encode_factors(problem: Scaled, tiling: Tiling, step: float, coding: Coding) -> tuple[dict[Tile, Block], float]:
    """Rank blocks alone, and the predicted damage.

    With feedback, column bands are coded from last to first inside each row band, and what a band
    lost is handed to the bands before it, as the second moment says they can make up for it (the
    block form of Cholesky feedback); tiles are then whitened by the diagonal blocks of the Cholesky
    factor. Without, each tile is whitened by its own columns' second moment.
    """
    if coding.factor_first:
        return encode_slices(problem, tiling, step, coding)
    blocks: dict[Tile, Block] = {}
    damage, lower, moment, num_columns = 0.0, problem.lower, problem.moment, problem.weight.shape[1]
    for band in row_bands(tiling):
        errors = torch.zeros(band[0].shape[0], num_columns, dtype=torch.float64)
        for tile in reversed(band):
            columns = tile.columns
            inner = lower[columns, columns] if coding.feedback else damped_cholesky(moment[columns, columns], coding.damping)
            target = original = problem.weight[tile.rows, columns]
            if coding.feedback and tile.column_stop < num_columns:
                later = errors[:, tile.column_stop :] @ lower[tile.column_stop :, columns]
                target = target + torch.linalg.solve_triangular(inner, later, upper=False, left=False)
            truncation = Truncation(coding.truncation, coding.threshold, coding.keep)
            ranks = coding.max_rank, coding.price, coding.fixed_rank(tile.shape)
            block = encode_tile(target, inner, step, coding.transform, truncation, *ranks, coding.svd)
            decoded = decode_tile(block, coding.transform, "identity").double()
            errors[:, columns] = original - decoded
            damage += 0.5 * float(((target - decoded) @ inner).square().sum())
            blocks[tile] = block
    return blocks, damage


def encode_slices(problem: Scaled, tiling: Tiling, step: float, coding: Coding) -> tuple[dict[Tile, Block], float]:
    """Rank blocks cut from one whitened factorisation of the matrix (paper Eq. 2), and the predicted damage."""
    left, values, right = whitened_svd(problem.weight, problem.lower, coding.svd, coding.max_rank)
    left, right = (left * values)[:, : coding.max_rank], right[:, : coding.max_rank]
    truncation = Truncation(coding.truncation, coding.threshold, coding.keep)
    blocks, error = {}, problem.weight.clone()
    for tile in tiling.tiles:
        inner = damped_cholesky(problem.moment[tile.columns, tile.columns], coding.damping)
        block = encode_slice(left[tile.rows], right[tile.columns], inner, step, coding.transform, truncation, coding.price)
        error[tile.rows, tile.columns] -= decode_tile(block, coding.transform, "identity").double()
        blocks[tile] = block
    return blocks, 0.5 * float((error @ problem.lower).square().sum())


def encode_with_residual(problem: Scaled, tiling: Tiling, step: float, coding: Coding) -> tuple[dict[Tile, Block], float]:
    """Rank blocks, each whitened by its own columns' moment, and the quantised rest."""
    weight = problem.weight
    if step == float("inf"):
        return {tile: empty_block(tile) for tile in tiling.tiles}, 0.5 * float((weight @ problem.lower).square().sum())
    if coding.alternations:
        blocks, codes, exact = encode_in_turn(problem, tiling, step, coding)
    else:
        blocks = factors_of(problem, tiling, step, coding)
        rest = weight - decoded(blocks, weight, coding) if coding.has_factors else weight
        codes, exact = residual_codes(rest, problem.lower, tiling, step, coding)
    unit = step if coding.trellis == 1 else step / 2
    lost = exact.sub_(codes).float()
    rest = None if coding.entries_only else weight - decoded(blocks, weight, coding)
    for tile, block in blocks.items():
        block.residual = codes[tile.rows, tile.columns].float().contiguous()
        block.residual_step = unit
        beside = lost[tile.rows, tile.columns].clamp(-0.499, 0.499).flatten()
        block.remainders = beside if block.remainders is None else torch.cat([block.remainders, beside])
        if rest is not None:
            rest[tile.rows, tile.columns] -= residual_part(block, coding.residual or "identity").double()
    if rest is not None:
        return blocks, 0.5 * float((rest @ problem.lower).square().sum())
    norms = torch.linalg.vector_norm(lost, dim=0).double() * problem.lower.diagonal()  # a column of E L, see `feedback_codes`
    return blocks, 0.5 * unit**2 * float(norms.square().sum())


def factors_of(problem: Scaled, tiling: Tiling, step: float, coding: Coding) -> dict[Tile, Block]:
    """The rank blocks that stand beside a residual, if there are any."""
    if not coding.has_factors:
        return {tile: empty_block(tile) for tile in tiling.tiles}
    return encode_factors(problem, tiling, step, replace(coding, residual=None, feedback=False))[0]


def decoded(blocks: dict[Tile, Block], like: Tensor, coding: Coding) -> Tensor:
    """What the factors of all blocks add up to (M, N), residuals left out."""
    total = torch.zeros_like(like)
    for tile, block in blocks.items():
        if block.rank:
            total[tile.rows, tile.columns] = decode_tile(replace(block, residual=None), coding.transform, "identity").double()
    return total


def residual_codes(rest: Tensor, lower: Tensor, tiling: Tiling, step: float, coding: Coding) -> tuple[Tensor, Tensor]:
    """Codes of what the factors leave, and what they were rounded from; both (M, N), with a trellis in half steps."""
    if coding.trellis > 1:
        return search(rest, lower, tiling, step, coding.trellis)
    if coding.residual == "identity":
        kept = kept_entries(rest, coding.residual_part, coding.residual_share)
        return feedback_codes(rest, lower, step, coding.residual_threshold, kept=kept)
    assert coding.residual is not None
    truncation = Truncation(coding.truncation, coding.residual_threshold, coding.keep)
    return spectral_codes(rest, tiling, coding.residual, lower, step, truncation)


def encode_in_turn(problem: Scaled, tiling: Tiling, step: float, coding: Coding) -> tuple[dict[Tile, Block], Tensor, Tensor]:
    """CALDERA's order: the residual first, with no factors, then factors of what it leaves, and so on.

    Of all rounds the one of the least squared error plus price of bits is kept (a fixed-rate code
    would compare errors alone: its bits are the same in every round).

    Returns:
        The blocks without their residual, and its codes as `residual_codes` gives them.
    """
    low_rank = torch.zeros_like(problem.weight)
    best: tuple[float, tuple[dict[Tile, Block], Tensor, Tensor]] | None = None
    for _ in range(coding.alternations):
        codes, exact = residual_codes(problem.weight - low_rank, problem.lower, tiling, step, coding)
        left = replace(problem, weight=problem.weight - step * codes)
        blocks = factors_of(left, tiling, step, coding)
        low_rank = decoded(blocks, problem.weight, coding)
        error = ((left.weight - low_rank) @ problem.lower).square().sum()
        whole = codes.long().numpy()
        bits = code_bits(whole, np.zeros(whole.shape, np.uint8), fit(whole))
        bits += sum(factor_bits(block) for block in blocks.values())
        cost = float(error) + coding.price * step**2 * math.log(2) / 6 * bits
        if best is None or cost < best[0]:
            best = cost, (blocks, codes, exact)
    assert best is not None
    return best[1]


def decode_tile(block: Block, transform: str, residual_transform: str) -> Tensor:
    """The tile (P, Q) that a block stands for (paper Eq. 4), in the block's dtype."""
    if block.residual is not None and not block.rank:
        return residual_part(block, residual_transform)
    left = basis_like(block.left, transform, 0).T @ (block.left * block.scale)
    right = basis_like(block.right, transform, 0).T @ block.right
    return left @ right.T if block.residual is None else left @ right.T + residual_part(block, residual_transform)


def residual_part(block: Block, transform: str) -> Tensor:
    """What the residual adds to the tile (P, Q)."""
    assert block.residual is not None
    if transform == "identity":
        return block.residual * block.residual_step
    down, across = (basis_like(block.residual, transform, axis) for axis in (0, 1))
    return down.T @ block.residual @ across * block.residual_step


def basis_like(values: Tensor, transform: str, axis: int) -> Tensor:
    """The basis along an axis of some coefficients, in their dtype and on their device."""
    return basis(transform, values.shape[axis], values.dtype, values.device)


def decode_matrix(coded: CodedMatrix) -> Tensor:
    """The dense weight (M, N), float32; expanded where it has a structure."""
    weight = torch.zeros(coded.tiling.shape)
    for tile, block in zip(coded.tiling.tiles, coded.blocks, strict=True):
        weight[tile.rows, tile.columns] = decode_tile(block, coded.transform, coded.residual_transform)
    weight = weight / scale_values(coded.row_scales)[:, None] / scale_values(coded.column_scales)
    weight = weight if coded.axes is None else coded.axes.entries(weight)
    return weight if coded.structure is None else coded.structure.expand(weight)
