"""Dropout from 16-bit numbers: rate, scale, reproducibility; attention against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmd4rec.models.dropout import Dropout, causal_attention


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.95])
def test_rate_and_scale(rate):
    torch.manual_seed(0)
    x = torch.full((400, 501), 3.0, requires_grad=True)
    y = Dropout(rate)(x)
    y.sum().backward()
    dropped = y.eq(0).double().mean().item()
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / x.numel()) ** 0.5 + 2**-16)
    assert torch.unique(y).tolist() == pytest.approx([0, 3 / (1 - rate)])
    assert torch.equal(x.grad, y.detach() / 3)


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = Dropout(0.5)(torch.ones(1_000_000)).ne(0).double()
    for distance in (1, 2, 3, 4, 64):
        assert (kept[distance:] * kept[:-distance]).mean() == pytest.approx(0.25, abs=0.003)


def test_it_follows_the_global_seed_and_does_nothing_outside_training():
    drop, x = Dropout(0.3), torch.randn(5, 7)
    torch.manual_seed(1)
    first = drop(x)
    state = torch.get_rng_state()
    second = drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), second)
    assert not torch.equal(first, second)
    assert drop.eval()(x) is x


def test_attention_without_dropout_is_pytorchs():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    nearly = Dropout(0.0)
    nearly.rate = 1e-12  # written out, with nothing dropped
    got = causal_attention(q, k, v, nearly)
    torch.testing.assert_close(got, wanted)
    for mine, theirs in zip(
        torch.autograd.grad(got.sum(), [q, k, v]), torch.autograd.grad(wanted.sum(), [q, k, v]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(causal_attention(q, k, v, Dropout(0.5).eval()), wanted)


def test_attention_with_dropout_keeps_its_mean_and_its_causality():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    drop = Dropout(0.5)
    many = torch.stack([causal_attention(q, k, v, drop) for _ in range(4000)])
    torch.testing.assert_close(many.mean(0), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=0.1, rtol=0)
    changed = v.clone()
    changed[..., 3:, :] += 100
    torch.manual_seed(5)
    before = causal_attention(q, k, v, drop)
    torch.manual_seed(5)
    assert torch.equal(causal_attention(q, k, changed, drop)[..., :3, :], before[..., :3, :])
