"""Axes of the columns are orthonormal, stored whole, free of damage, and refused where they are none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.codec.test_factors import problem, true_damage
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile.codec.axes import (
    AXES,
    KLT,
    SORTED,
    SPANS,
    Axes,
    basis_codes,
    basis_from_codes,
    chosen_axes,
    order_of_scales,
    pivoted_order,
)
from quasitile.codec.coding import Coding
from quasitile.codec.factors import scale_values
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack, unpack
from quasitile.codec.tiling import TILINGS
from quasitile.runtime import TiledMatrix

EXACT = TOLERANCE[torch.float64]


def coded(kind=KLT, span="band", step=0.1, **more):
    weight, moment, gradients = problem()
    coding = Coding(residual="identity", axes=kind, span=span, damping=1e-6, **more)
    return encode_matrix(weight, TILINGS["penrose"](60, 48, 16, 0), moment, gradients, step, coding)


BASES = [kind for kind in AXES if kind != SORTED]


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("kind", BASES)
def test_axes_are_orthonormal_and_lead_back(kind, span):
    weight, moment, _ = problem()
    axes = chosen_axes(kind, span, moment, TILINGS["fibonacci"](60, 48, 16, 0))
    for each in axes.matrices():
        assert_close(each @ each.T, torch.eye(len(each), dtype=torch.float64), **EXACT)
    assert_close(axes.entries(axes.coefficients(weight.double())), weight.double(), **EXACT)
    whole = torch.block_diag(*axes.matrices())
    assert_close(axes.moment(moment.double()), whole @ moment.double() @ whole.T, **EXACT)


@pytest.mark.parametrize("size", [1, 16, 90])
def test_stored_principal_axes_are_nearly_the_exact_ones(size):
    generator = torch.Generator().manual_seed(size)
    mixed = torch.randn(size, size, generator=generator, dtype=torch.float64) * torch.arange(1, size + 1).double() ** -1.0
    moment = mixed @ mixed.T
    vectors = torch.linalg.eigh(moment)[1].flip(1).T
    stored = basis_from_codes(basis_codes(vectors))
    turned = stored @ moment @ stored.T
    gain = turned.diagonal().log().sum() - moment.diagonal().log().sum()  # twice the nats that an entry's rounding saves
    exact = torch.linalg.eigvalsh(moment).clamp_min(1e-30).log().sum() - moment.diagonal().log().sum()
    assert gain <= 0.5 * exact + 1e-9


@pytest.mark.parametrize("max_rank", [0, 3])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("kind", AXES)
def test_the_predicted_damage_is_the_damage_and_bytes_come_back(kind, span, max_rank):
    weight, moment, _ = problem()
    found, predicted = coded(kind, span, max_rank=max_rank)
    stored = scale_values(found.row_scales).double().square()
    assert predicted == pytest.approx(true_damage(weight, decode_matrix(found), moment, stored), rel=0.08)
    back = unpack(pack(found), (60, 48))
    assert torch.equal(decode_matrix(back), decode_matrix(found))
    assert back.axes is not None
    assert back.axes.kind == kind


def test_stored_axes_are_counted_and_free_ones_are_not():
    sizes = {kind: pack(coded(kind)[0]).numel() for kind in (None, "dct", KLT)}
    assert sizes["dct"] < sizes[None] + 200
    found = coded(KLT)[0].axes
    assert found is not None
    assert sizes[KLT] > 0.25 * sum(width**2 for width in found.widths)


def test_a_trainable_matrix_is_the_stored_one():
    matrix = TiledMatrix.from_coded(coded()[0])
    dense = matrix.dense.clone()
    matrix.make_trainable()
    assert_close(matrix.weight(), dense, **TOLERANCE[torch.float32])
    x, parts = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 60)
    for block in matrix.rank_blocks():
        parts[:, block.tile.rows] += matrix.along_axes(x)[:, block.tile.columns] @ matrix.weight_of(block).T
    assert_close(parts, x @ dense.T, rtol=1e-4, atol=1e-3)
    matrix.pack()
    assert_close(matrix.dense, dense, **TOLERANCE[torch.float32])


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 20), st.sampled_from(AXES), st.sampled_from(SPANS), st.integers(0, 3)
)
def test_any_shape_round_trips(rows, columns, short, kind, span, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    tiling = TILINGS["fibonacci"](rows, columns, short, seed)
    coding = Coding(residual="identity", axes=kind, span=span)
    found, _ = encode_matrix(weight, tiling, torch.eye(columns), torch.ones(rows), 1e-3, coding)
    back = decode_matrix(unpack(pack(found)))
    assert torch.equal(back, decode_matrix(found))
    assert_close(back, weight, atol=2e-2, rtol=0)


def test_what_is_no_basis_is_refused():
    found, _ = coded()
    assert found.axes is not None
    good = found.axes
    found.axes = Axes(KLT, good.widths, tuple(torch.zeros_like(codes) for codes in good.codes))
    with pytest.raises(ValueError, match="linearly dependent"):
        unpack(pack(found))
    found.axes = Axes(KLT, (*good.widths[:-1], good.widths[-1] + 1), good.codes)
    with pytest.raises(ValueError, match="stand for 49 columns instead of 48"):
        unpack(pack(found))
    found.axes = Axes("dct", (48, 0))
    with pytest.raises(ValueError, match="stand for 48 columns"):
        unpack(pack(found))


def test_other_kinds_and_missing_bytes_are_refused():
    payload = pack(coded()[0])
    for kind in (100, 252):
        wrong = payload.clone()
        wrong[27] = kind
        with pytest.raises(ValueError, match=f"kind {kind}, which is out of range"):
            unpack(wrong)
    older = payload.clone()
    older[3] = ord("3")
    with pytest.raises(ValueError, match="axes are of kind 255"):
        unpack(older)
    for cut in (1, 100, 400):
        with pytest.raises(ValueError, match="ends at byte"):
            unpack(payload[:-cut].clone())


def slow_pivots(moment):
    """One pivot after another, by conditional variances from the inverse."""
    order, size = [], len(moment)
    while len(order) < size:
        rest = [index for index in range(size) if index not in order]
        given = moment[order][:, order]
        across = moment[rest][:, order]
        variance = moment[rest, rest] - (across @ torch.linalg.inv(given) * across).sum(1) if order else moment[rest, rest]
        order.append(rest[int(variance.argmax())])
    return torch.tensor(order)


def test_the_pivots_are_those_of_the_slow_way():
    _, moment, _ = problem()
    moment = moment.double() + 0.01 * torch.eye(48, dtype=torch.float64)
    assert torch.equal(pivoted_order(moment, block=1), slow_pivots(moment))
    assert sorted(pivoted_order(moment, block=7).tolist()) == list(range(48))
    assert sorted(pivoted_order(torch.ones(9, 9), block=4).tolist()) == list(range(9))


def test_sorted_columns_cost_no_byte_for_their_order_and_lose_less_where_few_bits_are_left():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(48, 48, generator=generator) * torch.rand(48, generator=generator) ** 3
    moment = mixed @ mixed.T + torch.diag(torch.rand(48, generator=generator) ** 4) * 20
    weight = torch.randn(200, 48, generator=generator)
    lost = {}
    for kind in (None, SORTED):
        sizes = {}
        for step in torch.logspace(0, 1.5, 24).tolist():
            coding = Coding(residual="identity", axes=kind)
            found, damage = encode_matrix(weight, TILINGS["whole"](200, 48, 16, 0), moment, torch.ones(200), step, coding)
            sizes[pack(found).numel()] = damage
            if kind == SORTED:
                assert found.axes is not None
                assert (found.column_scales.long().diff() <= 0).all()
        lost[kind] = min(damage for size, damage in sizes.items() if size <= 1500)
    assert lost[SORTED] < 0.97 * lost[None]


def test_an_order_that_is_not_that_of_the_scales_is_refused():
    found, _ = coded(SORTED)
    assert found.axes is not None
    found.column_scales = found.column_scales.flip(0)
    with pytest.raises(ValueError, match="sort them before packing"):
        pack(found)
    scales = torch.tensor([5, 9, 5, 7], dtype=torch.uint8)
    assert order_of_scales(scales).tolist() == [1, 3, 0, 2]


def test_a_payload_without_axes_is_what_it_was():
    payload = pack(coded(None)[0])
    assert bytes(payload[:4].tolist()) == b"QT03"
    assert unpack(payload).axes is None
