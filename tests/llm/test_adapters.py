"""Adapted layers: peft's formula and gradients, its names and its initial values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from llmd4rec.models.dropout import dropout_mask
from llmd4rec.models.llm.adapters import AdaptedLinear
from llmd4rec.models.llm.backbone import LoRA, add_lora, load_backbone

KINDS = ["linear", "no bias", "conv1d"]


def _peft_layer(kind: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    base = Conv1D(10, 12) if kind == "conv1d" else nn.Linear(12, 10, bias=kind == "linear")
    model = nn.ModuleDict({"layer": base})
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, target_modules=["layer"], fan_in_fan_out=kind == "conv1d")
    layer = inject_adapter_in_model(config, model)["layer"].to(dtype)
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def _gradients(layer: Any, x: Tensor, of: Any = None) -> list[Tensor]:
    result = layer(x)
    weights = torch.arange(1, result.numel() + 1, dtype=x.dtype).view_as(result) / result.numel()
    adapter = layer if of is None else of
    wanted = [x, adapter.lora_A["default"].weight, adapter.lora_B["default"].weight]
    return [result, *torch.autograd.grad((result.square() * weights).sum(), wanted)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_and_gradients_are_pefts(kind: str, dtype: torch.dtype) -> None:
    layer = _peft_layer(kind, dtype)
    x = torch.randn(2, 5, 12, dtype=dtype, requires_grad=True)
    for ours, theirs in zip(_gradients(AdaptedLinear(layer, 0.0), x), _gradients(layer, x), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_around_it_is_half_precision_within(kind: str, half: torch.dtype) -> None:
    layer = _peft_layer(kind, torch.float32)
    x = torch.randn(2, 5, 12, requires_grad=True)
    ours, exact = AdaptedLinear(layer, 0.0), _gradients(layer, x)
    with torch.autocast("cpu", half):
        result = ours(x)
        assert result.dtype == half
        rounded = _gradients(lambda x: ours(x).float(), x, of=layer)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 8 * torch.finfo(half).eps * other.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_on_the_adapters_input_alone(kind: str) -> None:
    layer = _peft_layer(kind, torch.float64)
    ours = AdaptedLinear(layer, 0.25).train()
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    result = _gradients(ours, x)
    torch.manual_seed(5)
    keep = dropout_mask(x, 0.25)
    layer.lora_dropout["default"] = type("Same", (nn.Module,), {"forward": lambda _, x: x * keep / 0.75})()
    for one, other in zip(result, _gradients(layer, x), strict=True):
        assert_close(one, other)
    assert_close(ours.eval()(x), AdaptedLinear(layer, 0.0)(x))


def test_the_first_layer_needs_no_gradient_of_its_input() -> None:
    layer = AdaptedLinear(_peft_layer("linear", torch.float32), 0.5)
    layer(torch.randn(3, 12)).sum().backward()
    assert layer.lora_A["default"].weight.grad is not None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_names_and_initial_values_are_pefts(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    ours, theirs = load_backbone(folder, layers=2), load_backbone(folder, layers=2)
    add_lora(ours, LoRA(r=4), seed=7)
    adapted = [name.removesuffix(".base_layer") for name, _ in ours.model.named_modules() if "base_layer" in name]
    torch.manual_seed(7)
    config = LoraConfig(r=4, target_modules=adapted, fan_in_fan_out=kind == "gpt2")
    inject_adapter_in_model(config, theirs.model)
    assert not any(isinstance(module, LoraLinear) for module in ours.model.modules())
    expected = dict(theirs.model.named_parameters())
    assert adapted
    assert [name for name, _ in ours.model.named_parameters()] == list(expected)
    for name, parameter in ours.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
