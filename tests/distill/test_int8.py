"""Teachers rounded to 8 bits, against the numbers they were rounded from."""

from __future__ import annotations

import pytest
import torch

from llmd4rec.losses.base import TeacherBatch
from llmd4rec.losses.int8 import Int8Rows, has_vnni
from llmd4rec.losses.scores import Factors
from llmd4rec.losses.softmax import DistillationTerm, ranking_loss

N, ITEMS, K, D = 60, 300, 40, 8


def restored(rows: Int8Rows) -> torch.Tensor:
    return rows.scale_R[:, None] * rows.values_RK


@pytest.fixture(params=[True, False], ids=["bytes", "floats"])
def in_bytes(request: pytest.FixtureRequest) -> bool:
    """Both ways to multiply: the processor's own product of bytes, where it has one, and that of floats."""
    if request.param and not has_vnni():
        pytest.skip("this processor has no product of bytes")
    return bool(request.param)


def test_a_row_is_off_by_at_most_half_a_step() -> None:
    rows = torch.randn(50, 20) * torch.logspace(-6, 6, 50)[:, None]
    rounded = Int8Rows.of(rows)
    assert ((restored(rounded) - rows).abs() <= rounded.scale_R[:, None] * 0.5001).all()
    assert rounded.values_RK.abs().amax(1).eq(127).all()


def test_zero_rows_stay_zero() -> None:
    assert restored(Int8Rows.of(torch.zeros(2, 3))).eq(0).all()


def test_products_are_exact_but_for_the_last_scaling(in_bytes: bool) -> None:
    torch.manual_seed(0)
    a, b = Int8Rows.of(torch.randn(N, K) * 3), Int8Rows.of(torch.randn(ITEMS, K), in_bytes)
    got = a[10:20].matmul(b, torch.empty(10, ITEMS))
    sums = a.values_RK[10:20].long() @ b.values_RK.long().T
    torch.testing.assert_close(got.double(), sums * a.scale_R.double()[10:20, None] * b.scale_R.double())


def test_no_score_is_larger_than_the_norms_allow() -> None:
    torch.manual_seed(0)
    a, b = Int8Rows.of(torch.randn(N, K) * 3), Int8Rows.of(torch.randn(ITEMS, K))
    assert (restored(a) @ restored(b).T).abs().max() <= a.largest_norm * b.largest_norm * (1 + 1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_that_of_the_rounded_teacher(in_bytes: bool, temperature: float) -> None:
    torch.manual_seed(1)
    states, table = torch.randn(N, D, requires_grad=True), torch.randn(ITEMS, D, requires_grad=True)
    target, rank = torch.randint(ITEMS, (N,)), torch.randint(1, ITEMS, (N,), dtype=torch.int32)
    t_states, t_table = torch.randn(N, K).half(), Int8Rows.of(torch.randn(ITEMS, K) * 0.5, in_bytes)
    distill = DistillationTerm(1.5, temperature)
    rounded = ranking_loss(
        states, table, target, TeacherBatch(Factors(t_states, t_table), rank), distill, block_elements=7 * ITEMS
    )
    # The log of 2 that the states carry before they are rounded moves the roundings by nothing: scales are per row.
    plain = TeacherBatch(Factors(restored(Int8Rows.of(t_states)), restored(t_table)), rank)
    expected = ranking_loss(states, table, target, plain, distill)
    torch.testing.assert_close(rounded.figures["kl"], expected.figures["kl"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rounded.figures["weight_counts"], expected.figures["weight_counts"])
    for got, wanted in zip(
        torch.autograd.grad(rounded.loss, [states, table]),
        torch.autograd.grad(expected.loss, [states, table]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_rounding_moves_a_plausible_teacher_by_little() -> None:
    torch.manual_seed(2)
    t_states, t_table = torch.randn(N, K), torch.randn(ITEMS, K) * 0.4
    log_q = (t_states @ t_table.T).log_softmax(1)
    scores = Int8Rows.of(t_states).matmul(Int8Rows.of(t_table), torch.empty(N, ITEMS))
    moved = (log_q.exp() * (log_q - scores.log_softmax(1))).sum(1)
    assert 0 < moved.mean() < 1e-3
