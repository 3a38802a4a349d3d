"""Triton kernels for what is held in pieces: products over bands of factors, products with whole numbers, and their scales.

Only imported where Triton is installed and tensors are on a GPU (`quasitile.runtime.accelerate`). Every kernel has its
reference in PyTorch (`quasitile.runtime.factored`, `quasitile.codec.dequantise`).

G bands of a group, M outputs of a band, K inputs of one, T tokens, R rows, N columns.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

FEW, MANY = 16, 64  # tokens of one program
OUTPUTS, INPUTS = 64, 64  # of one program, and of one of its steps


@triton.jit
def _gathered(weights, index, values, out, num_outputs, num_inputs, num_tokens, input_stride, token_stride,
              M: tl.constexpr, K: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """`out[g, m, t] = sum_k weights[g, m, k] values[index[g, k], t]`."""
    band = tl.program_id(0).to(tl.int64)
    outputs = tl.program_id(1) * M + tl.arange(0, M)
    tokens = tl.program_id(2) * T + tl.arange(0, T)
    total = tl.zeros((M, T), dtype=tl.float32)
    for start in range(0, num_inputs, K):
        inputs = start + tl.arange(0, K)
        place = tl.load(index + band * num_inputs + inputs, mask=inputs < num_inputs, other=0)
        inside = (outputs[:, None] < num_outputs) & (inputs[None, :] < num_inputs)
        rows = weights + band * num_outputs * num_inputs + outputs[:, None] * num_inputs
        weight = tl.load(rows + inputs[None, :], mask=inside, other=0.0)
        inside = (inputs[:, None] < num_inputs) & (tokens[None, :] < num_tokens)
        value = tl.load(values + place[:, None] * input_stride + tokens[None, :] * token_stride, mask=inside, other=0.0)
        total += tl.dot(weight, value.to(weight.dtype), input_precision="ieee")
    inside = (outputs[:, None] < num_outputs) & (tokens[None, :] < num_tokens)
    places = out + (band * num_outputs + outputs[:, None]) * num_tokens + tokens[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _whole_numbers(codes, x, row_values, out, num_rows, num_columns, num_tokens,
                   M: tl.constexpr, K: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """`out[t, m] = row_values[m] sum_n codes[m, n] x[t, n]`."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    tokens = tl.program_id(1) * T + tl.arange(0, T)
    total = tl.zeros((M, T), dtype=tl.float32)
    for start in range(0, num_columns, K):
        columns = start + tl.arange(0, K)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        code = tl.load(codes + rows[:, None].to(tl.int64) * num_columns + columns[None, :], mask=inside, other=0)
        inside = (columns[:, None] < num_columns) & (tokens[None, :] < num_tokens)
        value = tl.load(x + tokens[None, :].to(tl.int64) * num_columns + columns[:, None], mask=inside, other=0.0)
        total += tl.dot(code.to(value.dtype), value, input_precision="ieee")
    total *= tl.load(row_values + rows, mask=rows < num_rows, other=0.0)[:, None]
    inside = (rows[:, None] < num_rows) & (tokens[None, :] < num_tokens)
    tl.store(out + tokens[None, :].to(tl.int64) * num_rows + rows[:, None], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dequantise(points, row_scales, column_scales, order, out, step, num_columns, N: tl.constexpr, ORDERED: tl.constexpr):
    """A row of `points * step / row_scales / column_scales`; division rounds to the nearest, as on the processor."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    inside = columns < num_columns
    weight = tl.load(points + row * num_columns + columns, mask=inside, other=0).to(tl.float32) * step
    weight = tl.div_rn(weight, tl.load(row_scales + row))
    weight = tl.div_rn(weight, tl.load(column_scales + columns, mask=inside, other=1.0))
    places = tl.load(order + columns, mask=inside, other=0) if ORDERED else columns
    tl.store(out + row * num_columns + places, weight.to(out.dtype.element_ty), mask=inside)


def gathered_product(weights: Tensor, index: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Products of bands with the inputs that each meets (G M, T): `weights @ values[index]` without the gathered copy.

    Args:
        weights: (G, M, K) contiguous.
        index: (G, K) rows of `values`.
        values: (inputs, T), of any strides; cast to the dtype of `weights`.
        dtype: Of the result; sums are in float32.
    """
    bands, num_outputs, num_inputs = weights.shape
    num_tokens = values.shape[1]
    out = torch.empty(bands * num_outputs, num_tokens, dtype=dtype, device=weights.device)
    tokens = FEW if num_tokens <= FEW else MANY
    grid = (bands, triton.cdiv(num_outputs, OUTPUTS), triton.cdiv(num_tokens, tokens))
    sizes = num_outputs, num_inputs, num_tokens, values.stride(0), values.stride(1)
    _gathered[grid](weights, index, values, out, *sizes, M=OUTPUTS, K=INPUTS, T=tokens)  # pyright: ignore[reportIndexIssue]
    return out


def whole_number_product(codes: Tensor, x: Tensor, row_values: Tensor) -> Tensor:
    """`x @ (codes * row_values).T`, (T, M) in the dtype of `x`; codes become no weights in memory.

    Args:
        codes: (M, N) int8, contiguous.
        x: (T, N) contiguous.
        row_values: (M,) float32.
    """
    (num_rows, num_columns), num_tokens = codes.shape, len(x)
    out = torch.empty(num_tokens, num_rows, dtype=x.dtype, device=x.device)
    tokens = FEW if num_tokens <= FEW else MANY
    grid = (triton.cdiv(num_rows, OUTPUTS), triton.cdiv(num_tokens, tokens))
    _whole_numbers[grid](codes, x, row_values, out, num_rows, num_columns, num_tokens, M=OUTPUTS, K=INPUTS, T=tokens)  # pyright: ignore[reportIndexIssue]
    return out


def dequantise(
    points: Tensor, step: float, row_scales: Tensor, column_scales: Tensor, order: Tensor | None, out: Tensor
) -> None:
    """What `quasitile.codec.dequantise.dequantise` computes, on the device of `out`.

    Args:
        points: (R, N) whole numbers, contiguous.
        step: What one is worth.
        row_scales: (R,) float32.
        column_scales: (N,) float32.
        order: (N,) the column of `out` that each column of `points` becomes; nothing for its own.
        out: (R, N) contiguous, of any floating dtype.
    """
    num_rows, num_columns = points.shape
    width = min(1024, triton.next_power_of_2(num_columns))
    grid = (num_rows, triton.cdiv(num_columns, width))
    places = points if order is None else order
    scales = row_scales, column_scales
    _dequantise[grid](points, *scales, places, out, step, num_columns, N=width, ORDERED=order is not None)  # pyright: ignore[reportIndexIssue]
