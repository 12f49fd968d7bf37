"""Packed rows: the states and gradients of the ordinary way, no token too many, and refusals by trial."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import WORDS, save
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from llmd4rec.data.batching import SequenceBatch, TrainingWindows
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.cache import write_cache
from llmd4rec.models.llm.backbone import LoRA, load_backbone
from llmd4rec.models.llm.packed import Packing
from llmd4rec.models.llm.recommender import LLMNetwork

from .test_recommender import ITEMS, LENGTHS, PROMPTS, _batch, _histories, _network

SMALL = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("prompt", "response"), PROMPTS)
@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([7, 7, 7]), torch.tensor([1, 1, 1])])
def test_states_and_gradients_equal_those_with_a_cache(
    kind: str, prompt: str, response: str, lengths: Tensor, request: pytest.FixtureRequest
) -> None:
    network = _network(request.getfixturevalue(kind), prompt=prompt, response=response)
    assert network._packs
    trained = [p for p in network.parameters() if p.requires_grad]
    items = _histories()[:, : int(lengths.max())]
    result = []
    for packs in (True, False):
        network._packs = packs
        states = network.states(SequenceBatch(items, lengths))
        weight = torch.arange(1, states.numel() + 1).view_as(states) / states.numel()
        result.append(
            [states, *torch.autograd.grad((states.square() * weight).sum(), trained, materialize_grads=True,
                                          allow_unused=True)]
        )  # fmt: skip
    for packed, plain in zip(*result, strict=True):
        # A gradient that is 0 (attention over one token has nothing to choose) comes out as 0 or as rounding.
        torch.testing.assert_close(packed, plain, rtol=1e-3, atol=1e-4 * float(plain.detach().abs().max()) + 2e-6)


def test_padding_has_no_state_and_other_sequences_no_say(llama: str) -> None:
    network = _network(llama)
    items = _histories()
    states = network.states(SequenceBatch(items, LENGTHS))
    assert not states[0, 4:].any()
    other = items.clone()
    other[[0, 2]] = (other[[0, 2]] + 1) % ITEMS
    torch.testing.assert_close(network.states(SequenceBatch(other, LENGTHS))[1, :1], states[1, :1])


@pytest.mark.parametrize("seed", range(5))
def test_grid_and_row_hold_the_same_tokens(seed: int) -> None:
    draw = random.Random(seed)
    length, prompt = draw.randint(1, 9), draw.choice([0, 1, 4])
    lengths = torch.tensor([draw.randint(1, length) for _ in range(draw.randint(1, 6))])
    packing = Packing.of(lengths, length, prompt)
    x = torch.randn(int(lengths.sum()), 3)
    parts = x.split(lengths.tolist())
    grid = packing.spread(x)
    assert all(torch.equal(row[: len(part)], part) for row, part in zip(grid, parts, strict=True))
    expected = [*range(prompt), *(prompt + place for n in lengths.tolist() for place in range(n))]
    assert packing.position_T.tolist() == expected
    real = torch.zeros(len(lengths) * length, dtype=torch.bool)
    real[packing.slot_N] = True
    assert torch.equal(packing.token_S[real], torch.arange(len(x)))


def test_attention_dropout_works_in_training(gpt2: str) -> None:
    """Which no configuration brings along any more, but whoever takes the network may set."""
    network = _network(gpt2).train()
    for name, module in network.decoder.named_modules():
        if name.endswith("attn_dropout"):
            module.p = 0.1
    torch.manual_seed(0)
    one, other = (
        network.states(_batch()),
        network.states(_batch()),
    )
    torch.manual_seed(0)
    torch.testing.assert_close(network.states(_batch()), one)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("model", "packs"),
    [
        (lambda: Qwen3Model(Qwen3Config(**SMALL)), True),
        (lambda: MistralModel(MistralConfig(**SMALL, sliding_window=None)), True),
        (lambda: MistralModel(MistralConfig(**SMALL, sliding_window=3)), False),
        (lambda: Gemma2Model(Gemma2Config(**SMALL, query_pre_attn_scalar=8, attn_logit_softcapping=0.1)), False),
    ],
)
def test_a_decoder_that_attends_otherwise_runs_the_ordinary_way(
    model: Callable[[], PreTrainedModel], packs: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", model())
    assert load_backbone(folder).packs == packs
    states = _network(folder).states(_batch())
    assert torch.isfinite(states).all()
    assert not states[0, 4:].any()


def _count_tokens(network: LLMNetwork) -> list[int]:
    """Tokens of every call of the first block, as they come."""
    counts: list[int] = []
    blocks: Any = network.decoder.layers
    blocks[0].register_forward_pre_hook(lambda module, arguments: counts.append(arguments[0].shape[:-1].numel()))
    return counts


def test_no_work_on_padding_and_one_pass_per_batch(llama: str) -> None:
    network = _network(llama, lora=LoRA(r=4, dropout=0.1), dropout=0.5).train()
    counts = _count_tokens(network)
    network.states(_batch()).sum().backward()
    assert counts == [len(network._prompt_tokens) + int(LENGTHS.sum())]


def test_publishing_is_one_forward_pass(llama: str, chain_data: Dataset, tmp_path: Path) -> None:
    """Every training position is read once, and the prompt once per batch."""
    items = chain_data.num_items
    network = _network(llama, item_features="text", text_vectors=torch.randn(items, 5), num_items=items)
    counts = _count_tokens(network)
    windows = TrainingWindows(chain_data, network.max_length)
    read = sum(int(windows.batch(np.array([w])).lengths_B) for w in range(len(windows)))
    write_cache(network, chain_data, tmp_path / "teacher", label="llm", batch_items=50)
    batches = sum(1 for _ in windows.in_order(50))
    assert len(counts) == batches
    assert sum(counts) == read + batches * len(network._prompt_tokens)
