"""Products by either library against double precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmd4rec import matmul as products


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def onednn(request: pytest.FixtureRequest) -> bool:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    return bool(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("views", [False, True])
def test_product_of_rows_and_of_views(onednn: bool, dtype: torch.dtype, views: bool) -> None:
    torch.manual_seed(0)
    a = torch.randn(5, 7, dtype=dtype).t() if views else torch.randn(7, 5, dtype=dtype)
    b = torch.randn(5, 11, dtype=dtype).t() if views else torch.randn(11, 5, dtype=dtype)
    got = products.product(a, b, out=torch.empty(7, 11, dtype=dtype), onednn=onednn)
    torch.testing.assert_close(got.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 2), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(onednn: bool, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    b = torch.randn(3, requires_grad=True) if bias else None
    wanted, got = F.linear(x, weight, b), products.linear(x, weight, b, onednn=onednn)
    torch.testing.assert_close(got, wanted)
    inputs = [x, weight, *([b] if b is not None else [])]
    pull = torch.randn_like(wanted)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_linear_leaves_frozen_weights_alone(onednn: bool) -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    products.linear(x, weight, onednn=onednn).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 4))
