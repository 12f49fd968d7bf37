"""Dropout by random bits: the right rate and scale, independent, and all of it from PyTorch's global generator."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llmd4rec.models.dropout import Dropout, causal_attention, dropout_mask


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_rate_and_independence(rate: float) -> None:
    torch.manual_seed(0)
    keep = dropout_mask(torch.empty(1000, 1001), rate)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(float(keep.mean()) - (1 - rate)) < 4 * deviation / 1000
    # Four elements come out of one random number: neighbours must not know of each other, nor rows or columns.
    centred = ((keep - keep.mean()) / deviation).flatten()
    for shift in (1, 2, 3, 4, 1001):
        assert abs(float((centred[shift:] * centred[:-shift]).mean())) < 5e-3
    assert float((keep.mean(0) - 1 + rate).abs().max()) < 6 * deviation / 1000**0.5


def test_extreme_rates_do_not_overflow() -> None:
    assert float(dropout_mask(torch.empty(100_000), 1e-6).mean()) > 0.999
    assert float(dropout_mask(torch.empty(100_000), 1 - 1e-6).mean()) < 0.001


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 1), (2, 3, 7)])
def test_survivors_are_scaled_and_gradients_follow(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    result = Dropout(0.25).train()(x)
    torch.manual_seed(1)
    keep = dropout_mask(x, 0.25)
    assert keep.dtype == x.dtype
    assert_close(result, x * keep / 0.75)
    result.sum().backward()
    assert_close(x.grad, keep / 0.75)


def test_the_saved_random_state_is_all_there_is() -> None:
    layer, x = Dropout(0.5).train(), torch.ones(50)
    torch.manual_seed(2)
    layer(x)
    state = torch.random.get_rng_state()
    after = layer(x)
    assert not torch.equal(layer(x), after)
    torch.random.set_rng_state(state)
    assert torch.equal(layer(x), after)


def test_nothing_is_drawn_outside_training() -> None:
    before, x = torch.random.get_rng_state(), torch.ones(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert torch.equal(torch.random.get_rng_state(), before)


def test_attention_without_dropout_is_pytorchs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    nearly = Dropout(0.0)
    nearly.rate = 1e-12  # written out, with nothing dropped
    got = causal_attention(q, k, v, nearly)
    assert_close(got, wanted)
    for mine, theirs in zip(
        torch.autograd.grad(got.sum(), [q, k, v]), torch.autograd.grad(wanted.sum(), [q, k, v]), strict=True
    ):
        assert_close(mine, theirs)
    assert_close(causal_attention(q, k, v, Dropout(0.5).eval()), wanted)


def test_attention_with_dropout_keeps_its_mean_and_its_causality() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    drop = Dropout(0.5)
    many = torch.stack([causal_attention(q, k, v, drop) for _ in range(4000)])
    assert_close(many.mean(0), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=0.1, rtol=0)
    changed = v.clone()
    changed[..., 3:, :] += 100
    torch.manual_seed(5)
    before = causal_attention(q, k, v, drop)
    torch.manual_seed(5)
    assert torch.equal(causal_attention(q, k, changed, drop)[..., :3, :], before[..., :3, :])
