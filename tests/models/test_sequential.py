"""What every sequential model must do, whichever network it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmd4rec.config.settings import load_settings
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.distillation.efforts import RECIPE
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.distillation.teachers import Teacher
from llmd4rec.errors import ConfigError
from llmd4rec.features.item_features import ItemFeatures, written
from llmd4rec.models.base import last_states
from llmd4rec.models.embedding import item_embedding_of
from llmd4rec.models.sequential import MODELS, BSARec, GRU4Rec, LiGR, SASRec
from llmd4rec.models.sequential.bsarec import low_pass

ITEMS = 40
KINDS: dict[str, Any] = {"sasrec": SASRec, "bsarec": BSARec, "ligr": LiGR, "gru4rec": GRU4Rec}


def network(name: str, **settings: Any) -> Any:
    return KINDS[name](**{"dim": 16, "layers": 2, "max_length": 12, "dropout": 0.3, **settings}).build(ITEMS, 7)


def histories(batch: int, length: int) -> torch.Tensor:
    return torch.randint(ITEMS, (batch, length), generator=torch.Generator().manual_seed(1))


def test_each_can_teach_by_its_name() -> None:
    assert MODELS.known.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        assert isinstance(Teacher(name=name, dim=32).network(SASRec(dim=8)), kind)


@pytest.mark.parametrize("name", KINDS)
def test_a_state_depends_on_every_earlier_item_and_on_no_later_one(name: str) -> None:
    model, items = network(name).eval(), histories(3, 12)
    lengths = torch.full((3,), 12)
    before = model.states(SequenceBatch(items, lengths))
    for position in range(12):
        changed = items.clone()
        changed[:, position] = (changed[:, position] + 1) % ITEMS
        moved = (model.states(SequenceBatch(changed, lengths)) - before).abs().amax(-1)
        assert (moved[:, :position] == 0).all()
        assert (moved[:, position:] > 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_padding_changes_nothing(name: str) -> None:
    model, items = network(name).eval(), histories(4, 12)
    lengths = torch.tensor([1, 4, 12, 7])
    expected = last_states(model, SequenceBatch(items, lengths))
    for row, length in enumerate(lengths):
        alone = last_states(model, SequenceBatch(items[row : row + 1, :length], lengths[row : row + 1]))
        torch.testing.assert_close(alone[0], expected[row])


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_learns_and_the_seed_decides_where_from(name: str) -> None:
    model, items = network(name, dropout=0.0), histories(4, 12)
    states = model.states(SequenceBatch(items, torch.full((4,), 12)))
    torch.nn.functional.cross_entropy((states @ model.item_table().T).flatten(0, 1), items.flatten()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), network(name).state_dict().values(), strict=True)
    )
    assert (model.num_items, model.dim, model.max_length) == (ITEMS, 16, 12)


@pytest.mark.parametrize("name", KINDS)
def test_dropout_acts_in_training_only(name: str) -> None:
    model, items, lengths = network(name), histories(2, 12), torch.full((2,), 12)
    assert not torch.equal(model.states(SequenceBatch(items, lengths)), model.states(SequenceBatch(items, lengths)))
    model.eval()
    assert torch.equal(model.states(SequenceBatch(items, lengths)), model.states(SequenceBatch(items, lengths)))


@pytest.mark.parametrize("name", KINDS)
def test_it_can_read_texts(name: str) -> None:
    model = network(name, item_features="id+text")
    item_embedding_of(model).attach(ItemFeatures((torch.randn(ITEMS, 5),)), seed=0)
    names = {name for name, _ in model.named_parameters()}
    item_embedding_of(model).merge()
    assert {name for name, _ in model.named_parameters()} == {name for name in names if ".towers." not in name} != names


def test_gru4rec_is_the_recurrence_of_its_paper() -> None:
    """One layer, by hand: reset gate, update gate, candidate."""
    model = network("gru4rec", layers=1, hidden=6).eval()
    items = histories(1, 5)
    gru = model.layers[0]
    (wr, wz, wn), (ur, uz, un) = gru.weight_ih_l0.chunk(3), gru.weight_hh_l0.chunk(3)
    (br, bz, bn), (cr, cz, cn) = gru.bias_ih_l0.chunk(3), gru.bias_hh_l0.chunk(3)
    h = torch.zeros(6)
    for item in items[0]:
        x = model.items.weight[item]
        r, z = torch.sigmoid(wr @ x + br + ur @ h + cr), torch.sigmoid(wz @ x + bz + uz @ h + cz)
        n = torch.tanh(wn @ x + bn + r * (un @ h + cn))
        h = (1 - z) * n + z * h
    torch.testing.assert_close(last_states(model, SequenceBatch(items, torch.tensor([5])))[0], model.out(h))


@pytest.mark.parametrize(("cutoff", "length"), [(1, 12), (5, 12), (5, 11), (30, 12)])
def test_bsarecs_filter_is_a_cut_off_fourier_transform_at_the_last_position(cutoff: int, length: int) -> None:
    """As its authors compute it: a window with nothing before its start, transformed, cut off and turned back."""
    kept, x = cutoff // 2 + 1, torch.randn(length, 3, dtype=torch.float64)
    ours = low_pass(length, kept).double() @ x
    for last in range(length):
        window = torch.zeros(length, 3, dtype=torch.float64)
        window[length - 1 - last :] = x[: last + 1]
        frequencies = torch.fft.rfft(window, dim=0, norm="ortho")
        frequencies[kept:] = 0
        expected = torch.fft.irfft(frequencies, n=length, dim=0, norm="ortho")[-1]
        torch.testing.assert_close(ours[last], expected, atol=1e-6, rtol=1e-6)


def test_bsarec_mixes_filter_and_attention() -> None:
    """One block with one head, by hand."""
    model = network("bsarec", layers=1, heads=1, alpha=0.6, cutoff=3).eval()
    items, block = histories(1, 4), model.blocks[0]
    x = model.norm_in(model.items.weight[items[0]] + model.positions.weight[:4])
    low = low_pass(12, 2)[:4, :4] @ x
    filtered = block.norm_filter(x + low + block.root_beta.square() * (x - low))
    q, k, v = block.qkv(x).chunk(3, -1)
    weights = (q @ k.T / 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1)
    h = 0.6 * filtered + 0.4 * block.norm_attention(x + block.out(weights @ v))
    expected = block.norm_out(h + block.down(torch.nn.functional.gelu(block.up(h))))
    torch.testing.assert_close(model.states(SequenceBatch(items, torch.tensor([4])))[0], expected)


def test_ligr_is_gated_pre_norm_attention_and_swiglu() -> None:
    """One block with one head, by hand."""
    model = network("ligr", layers=1, heads=1).eval()
    items, block = histories(1, 4), model.blocks[0]
    x = model.items.weight[items[0]] + model.positions.weight[:4]
    q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
    scores = (q @ k.T / 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    x = x + torch.sigmoid(block.gate1(x)) * block.out(scores.softmax(-1) @ v)
    up, gate = block.up(block.norm2(x)).chunk(2, -1)
    x = x + torch.sigmoid(block.gate2(x)) * block.down(gate * torch.sigmoid(gate) * up)
    torch.testing.assert_close(model.states(SequenceBatch(items, torch.tensor([4])))[0], model.norm_out(x))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.name=bert4rec",
            r"model\.name = 'bert4rec': no model has this name; did you mean 'gru4rec'\? \(known: sasrec, bsarec, ",
        ),
        ("model=5", r"model = 5: must be the name of a model, a group of its settings"),
        ("model.dimm=3", r"unknown setting 'model\.dimm'; did you mean 'model\.dim'\?"),
        ("model.heads=3", "heads = 3 does not divide dim = 64"),
        (
            "model.item_features=text",
            r"model\.item_features: 'text' must be id, then any of \+text, \+words, \+attributes, \+neighbours",
        ),
        ("model.item_features=id+txt", r"model\.item_features: 'id\+txt' must be id, then"),
        ("model.item_features=[text]", r"model\.item_features: the list must name id"),
        ("model.item_features=[id,txt]", r"model\.item_features.*: no item feature has this name; did you mean 'text'"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(DistillationSettings, None, [override], base=RECIPE)


def test_the_order_of_what_a_table_learns_from_does_not_matter() -> None:
    ordered = load_settings(
        DistillationSettings, None, ["model.item_features=id+neighbours+text+text"], base=RECIPE
    ).model
    assert written(ordered.item_features) == "id+text+neighbours"


def test_settings_name_the_network() -> None:
    assert load_settings(DistillationSettings, None, base=RECIPE).model == SASRec()
    assert load_settings(DistillationSettings, None, ["model.dim=32"], base=RECIPE).model == SASRec(dim=32)
    assert load_settings(DistillationSettings, None, ["model.name=ligr"], base=RECIPE).model == LiGR()
    assert load_settings(DistillationSettings, None, ["model.name=bsarec"], base=RECIPE).model == BSARec()
    assert load_settings(
        DistillationSettings, None, ["model.name=gru4rec", "model.hidden=32"], base=RECIPE
    ).model == GRU4Rec(hidden=32)


def test_a_gru_is_in_single_precision_whatever_is_around_it() -> None:
    """PyTorch runs it in fp16 inside any autocast on a GPU, also where bf16 was asked for."""
    network = GRU4Rec(dim=8, item_features="id").build(10, 0).eval()
    seen = []
    network.layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0].dtype, torch.is_autocast_enabled("cpu")))
    )
    items_BL, lengths_B = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    plain = network.states(SequenceBatch(items_BL, lengths_B))
    with torch.autocast("cpu", torch.bfloat16):
        half = network.states(SequenceBatch(items_BL, lengths_B))
    assert seen == [(torch.float32, False)] * 2
    torch.testing.assert_close(half.float(), plain, rtol=0.05, atol=0.01)
