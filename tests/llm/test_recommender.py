"""The recommender: one pass with a shared prompt equals the long way round, and only what should be trained is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny_llama import llama_model, save
from torch import Tensor

from llmd4rec.data.batching import SequenceBatch
from llmd4rec.errors import ConfigError, ModelError
from llmd4rec.models.base import SequenceEncoder, last_states
from llmd4rec.models.llm import backbone
from llmd4rec.models.llm.assemble import build_llm
from llmd4rec.models.llm.backbone import LoRA, embedding_rms, load_backbone
from llmd4rec.models.llm.recommender import LLMNetwork
from llmd4rec.models.llm.settings import LLM

ITEMS, ID_DIM, TEXT_DIM = 11, 6, 5
LENGTHS = torch.tensor([4, 1, 7])
PROMPTS = [("", ""), ("given the items", " predict :")]


def _texts() -> Tensor:
    vectors = 3 * torch.randn(ITEMS, TEXT_DIM, generator=torch.Generator().manual_seed(1))
    vectors[4] = 0  # an item without text
    return vectors


def _table(seed: int = 2) -> Tensor:
    return 0.1 * torch.randn(ITEMS, ID_DIM, generator=torch.Generator().manual_seed(seed))


def _histories() -> Tensor:
    return torch.randint(ITEMS, (3, 7), generator=torch.Generator().manual_seed(3))


def _batch() -> SequenceBatch:
    return SequenceBatch(_histories(), LENGTHS)


def _network(folder: str, **settings: Any) -> LLMNetwork:
    values: dict[str, Any] = {
        "num_items": ITEMS,
        "item_features": "id+text",
        "id_dim": ID_DIM,
        "text_vectors": _texts(),
        "max_length": 7,
        "dim": 8,
    }
    values |= {"lora": LoRA(r=4, dropout=0.0), "prompt": "given the items", "response": " predict :"}
    network = LLMNetwork(load_backbone(folder, layers=2), **(values | settings))
    if network.uses_id:
        network.inject(_table())
    for name, parameter in network.named_parameters():
        if "lora_B" in name:  # adapters start at zero, where nothing could be told from their absence
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return network.eval()


def _one_by_one(network: LLMNetwork, items: Tensor, lengths: Tensor) -> list[Tensor]:
    """The states the long way: each history alone, prompt embeddings and items in one sequence, no cache."""
    decoder: Any = network.decoder
    prompt = decoder.get_input_embeddings()(network._prompt_tokens)
    result = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        inputs = torch.cat([prompt, network.item_tokens(row[:length])])[None]
        hidden = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, len(prompt) :]
        result.append(hidden if network.head is None else network.head(hidden))
    return result


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("prompt", "response"), PROMPTS)
@pytest.mark.parametrize("dim", [None, 8])
def test_states_and_gradients_equal_the_long_way(
    kind: str, prompt: str, response: str, dim: int | None, request: pytest.FixtureRequest
) -> None:
    network = _network(request.getfixturevalue(kind), prompt=prompt, response=response, dim=dim)
    items = _histories()
    trained = [p for p in network.parameters() if p.requires_grad]

    def gradients(states: list[Tensor]) -> tuple[Tensor, ...]:
        total = sum(((s.square() * torch.arange(1, s.shape[-1] + 1)).sum() for s in states), torch.zeros(()))
        return torch.autograd.grad(total, trained, allow_unused=True, materialize_grads=True)

    padded = network.states(SequenceBatch(items, LENGTHS))
    batched = [row[:length] for row, length in zip(padded, LENGTHS.tolist(), strict=True)]
    alone = _one_by_one(network, items, LENGTHS)
    for one, other in zip(batched, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    for one, other in zip(gradients(batched), gradients(alone), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()) + 1e-7, rtol=1e-3)
    assert padded.shape == (3, 7, network.dim)
    assert network.item_table().shape == (ITEMS, network.dim)


def test_gradients_reach_the_adapters_through_the_prompt_alone(llama: str) -> None:
    network = _network(llama)
    full = network.states(_batch()).sum()
    adapters = {n: p for n, p in network.named_parameters() if "layers.0.self_attn.v_proj.lora_B" in n}
    with_prompt = torch.autograd.grad(full, list(adapters.values()))
    empty = _network(llama, prompt="", response="")
    adapters = {n: p for n, p in empty.named_parameters() if n in adapters}
    without = torch.autograd.grad(empty.states(_batch()).sum(), list(adapters.values()))
    assert not torch.allclose(with_prompt[0], without[0])


def test_padding_and_later_items_change_nothing(llama: str) -> None:
    network = _network(llama)
    items = _histories()
    states = network.states(SequenceBatch(items, LENGTHS))
    altered = items.clone()
    altered[0, 4:] = (altered[0, 4:] + 1) % ITEMS
    altered[2, 5:] = (altered[2, 5:] + 1) % ITEMS
    other = network.states(SequenceBatch(altered, LENGTHS))
    torch.testing.assert_close(other[0, :4], states[0, :4])
    torch.testing.assert_close(other[2, :5], states[2, :5])
    assert not torch.allclose(other[2, 5:], states[2, 5:])
    assert isinstance(network, SequenceEncoder)
    torch.testing.assert_close(last_states(network, SequenceBatch(items[:1, :4], LENGTHS[:1]))[0], states[0, 3])


def test_the_prompt_matters(llama: str) -> None:
    one = _network(llama, prompt="given red").states(_batch())
    other = _network(llama, prompt="given blue").states(_batch())
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("items", ["id", "text", "id+text"])
def test_soft_tokens_start_at_the_size_of_token_embeddings(llama: str, items: str) -> None:
    network = _network(llama, item_features=items, text_vectors=100 * _texts())
    if network.uses_id:
        network.inject(1000 * _table())
    size = network.item_tokens(torch.arange(ITEMS)).detach().square().mean().sqrt()
    assert 0.6 < float(size) / embedding_rms(network.decoder) < 1.6


def test_injection_replaces_only_the_frozen_table(llama: str) -> None:
    network = _network(llama)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    states = network.states(_batch())
    network.inject(_table(9))
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert not torch.allclose(network.states(_batch()), states)
    with pytest.raises(ModelError, match="shape"):
        network.inject(torch.zeros(ITEMS, ID_DIM + 1))
    with pytest.raises(ModelError, match="undefined"):
        network.inject(torch.full((ITEMS, ID_DIM), float("nan")))


def test_states_before_injection_are_refused(llama: str) -> None:
    network = LLMNetwork(load_backbone(llama, layers=1), ITEMS, id_dim=ID_DIM, lora=LoRA())
    with pytest.raises(ModelError, match="injected"):
        network.states(_batch())


def test_table_can_start_at_another_models(llama: str) -> None:
    network = _network(llama, item_features="id", dim=ID_DIM, init_table_from_model=True)
    assert torch.equal(network.item_table(), _table())
    network.item_table().sum().backward()
    assert network.table.grad is not None
    with pytest.raises(ConfigError, match="dim"):
        _network(llama, item_features="id", dim=ID_DIM + 1, init_table_from_model=True)


def test_only_what_is_learned_is_trained_and_saved(llama: str) -> None:
    network = _network(llama)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained if n.startswith("decoder."))
    assert {n.split(".")[0] for n in trained} == {"decoder", "id_in", "text_in", "text_out", "head", "table"}
    state = {name: tensor.clone() for name, tensor in network.saved_state().items()}
    assert set(state) == trained | {"injected", "injected_rms"}
    other = _network(llama, seed=5)
    other.inject(_table(9))
    other.load_saved_state(state)
    torch.testing.assert_close(other.states(_batch()), network.states(_batch()))
    torch.testing.assert_close(other.item_table(), network.item_table())
    with pytest.raises(ModelError, match="does not fit"):
        _network(llama, dim=9).load_saved_state(state)


def test_tuning_modes(llama: str) -> None:
    def decoder_trained(**settings: Any) -> set[str]:
        network = _network(llama, **settings)
        return {n for n, p in network.decoder.named_parameters() if p.requires_grad}

    assert decoder_trained(tune="frozen") == set()
    full = decoder_trained(tune="full")
    assert "norm.weight" in full
    assert not any("embed_tokens" in name or "lora" in name for name in full)
    with pytest.raises(ConfigError, match="adapters"):
        _network(llama, lora=None)


def test_seed_decides_initial_values_and_nothing_global(llama: str) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = (_network(llama, seed=s).saved_state() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["table"], other["table"])
    assert not torch.equal(one["id_in.weight"], other["id_in.weight"])


def test_contradictions(llama: str) -> None:
    with pytest.raises(ConfigError, match="id_dim"):
        _network(llama, id_dim=0)
    with pytest.raises(ConfigError, match="one text vector"):
        _network(llama, text_vectors=None)
    with pytest.raises(ModelError, match="reads 64 tokens"):
        _network(llama, max_length=62)
    with pytest.raises(ValueError, match="extra"):
        LLM(colour="red")


def test_it_learns_a_cycle(llama: str) -> None:
    """Item i is always followed by i + 1: a few steps must be enough to predict it."""
    torch.manual_seed(0)
    network = _network(llama, lora=LoRA(r=4), dropout=0.1).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    for _ in range(60):
        items = (torch.randint(ITEMS, (16, 1)) + torch.arange(8)) % ITEMS
        scores = network.states(SequenceBatch(items[:, :-1], torch.full((16,), 7))) @ network.item_table().T
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), items[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5


@pytest.mark.parametrize("items", ["id", "text", "id+text"])
def test_rows_of_the_table_are_those_of_the_whole(llama: str, items: str) -> None:
    """A large catalogue asks only for its candidates' rows, and their gradients are the same."""
    network = _network(llama, item_features=items, dim=8)
    wanted = torch.tensor([3, 0, 3, 5])
    whole, rows = network.item_table()[wanted], network.item_table(wanted)
    torch.testing.assert_close(rows, whole)
    trained = [p for n, p in network.named_parameters() if p.requires_grad and ("table" in n or "text_out" in n)]
    for one, other in zip(
        torch.autograd.grad(rows.square().sum(), trained),
        torch.autograd.grad(whole.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("items", ["id", "text", "id+text"])
def test_a_tied_table_is_also_what_is_read(llama: str, items: str) -> None:
    network = _network(llama, item_features=items, tie_table=True)
    asked = torch.tensor([[3, 0], [3, 9]])
    before = network.item_tokens(asked)
    with torch.no_grad():
        network.table[3] += 1.0
    moved = (network.item_tokens(asked) - before).abs().amax(-1)
    assert (moved[:, 0] > 0).all()
    assert (moved[:, 1] == 0).all()
    tokens = _network(llama, item_features=items, tie_table=True).item_tokens(torch.arange(ITEMS))
    assert 0.5 < float(tokens.detach().square().mean().sqrt()) / embedding_rms(network.decoder) < 2


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_a_tied_table_that_starts_at_another_models_is_read_at_its_own_size(llama: str, size: float) -> None:
    network = _network(llama, tie_table=True, dim=ID_DIM, init_table_from_model=True)
    network.inject(size * _table())
    tokens = network.item_tokens(torch.arange(ITEMS))
    assert 0.5 < float(tokens.detach().square().mean().sqrt()) / embedding_rms(network.decoder) < 2


@pytest.mark.parametrize("rate", ["state_dropout", "branch_dropout"])
def test_dropout_inside_acts_in_training_only(llama: str, rate: str) -> None:
    items = _histories()
    plain, network = _network(llama), _network(llama, **{rate: 0.5})
    assert torch.equal(network.states(SequenceBatch(items, LENGTHS)), plain.states(SequenceBatch(items, LENGTHS)))
    plain.train(), network.train()
    assert torch.equal(plain.states(SequenceBatch(items, LENGTHS)), plain.states(SequenceBatch(items, LENGTHS)))
    assert not torch.equal(network.states(SequenceBatch(items, LENGTHS)), network.states(SequenceBatch(items, LENGTHS)))


def test_a_branch_that_is_dropped_whole_adds_nothing(llama: str) -> None:
    """With almost everything dropped the layers let their input through: the states are those of no layers."""
    network = _network(llama, prompt="", response="", branch_dropout=0.99999, dim=None).train()
    items = torch.tensor([[2, 7, 5]])
    norm: Any = network.decoder.norm
    expected = norm(network.item_tokens(items))
    torch.testing.assert_close(network.states(SequenceBatch(items, torch.tensor([3]))), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kept", "rate", "expected"), [(2, "auto", 0.3), (4, "auto", 0.3), (8, "auto", 0.15), (8, 0.3, 0.3), (8, 0.0, None)]
)
def test_branches_of_a_deep_model_drop_less(
    kept: int, rate: float | Literal["auto"], expected: float | None, tmp_path: Path
) -> None:
    """The rate follows the layers that were kept, not those that there are."""
    model = save(tmp_path, llama_model(9))
    settings = LLM(model, layers=kept, item_features="id", max_length=7, branch_dropout=rate)
    network, _ = build_llm(settings, ITEMS, ID_DIM, None, seed=0, device=torch.device("cpu"))
    hooks = [hook for module in network.modules() for hook in module._forward_hooks.values()]
    rates = [hook.dropout.rate for hook in hooks if isinstance(hook, backbone._DroppedBranch)]
    assert rates == ([] if expected is None else [pytest.approx(expected)] * (2 * kept))
