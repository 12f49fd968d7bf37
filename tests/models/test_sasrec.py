from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from llmd4rec.config.settings import load_settings
from llmd4rec.data.batching import SequenceBatch
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import ConfigError
from llmd4rec.models.base import last_states
from llmd4rec.models.sequential import SASRec

ITEMS = 40


def network(**settings: object) -> Any:
    return SASRec(**{"dim": 16, "layers": 2, "heads": 4, "max_length": 12, "dropout": 0.3, **settings}).build(ITEMS, 7)


def histories(batch: int, length: int) -> torch.Tensor:
    return torch.randint(ITEMS, (batch, length), generator=torch.Generator().manual_seed(1))


def test_a_state_depends_on_every_earlier_item_and_on_no_later_one() -> None:
    model, items = network().eval(), histories(3, 12)
    lengths = torch.full((3,), 12)
    before = model.states(SequenceBatch(items, lengths))
    for position in range(12):
        changed = items.clone()
        changed[:, position] = (changed[:, position] + 1) % ITEMS
        moved = (model.states(SequenceBatch(changed, lengths)) - before).abs().amax(-1)
        assert (moved[:, :position] == 0).all()
        assert (moved[:, position:] > 0).all()


def test_padding_changes_nothing() -> None:
    model, items = network().eval(), histories(4, 12)
    lengths = torch.tensor([1, 4, 12, 7])
    filled = items.clone()
    for row, length in enumerate(lengths):
        filled[row, length:] = 0
    expected = last_states(model, SequenceBatch(items, lengths))
    torch.testing.assert_close(last_states(model, SequenceBatch(filled, lengths)), expected)
    for row, length in enumerate(lengths):
        alone = last_states(model, SequenceBatch(items[row : row + 1, :length], lengths[row : row + 1]))
        torch.testing.assert_close(alone[0], expected[row])


def test_the_order_of_the_history_counts() -> None:
    model = network().eval()
    forth, back = torch.tensor([[1, 2, 3, 9]]), torch.tensor([[3, 2, 1, 9]])
    assert (
        last_states(model, SequenceBatch(forth, torch.tensor([4])))
        - last_states(model, SequenceBatch(back, torch.tensor([4])))
    ).abs().max() > 0


def test_every_parameter_learns() -> None:
    model, items = network(dropout=0.0), histories(4, 12)
    states = model.states(SequenceBatch(items, torch.full((4,), 12)))
    torch.nn.functional.cross_entropy((states @ model.item_table().T).flatten(0, 1), items.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_only_in_training() -> None:
    model, items = network(), histories(2, 5)
    lengths = torch.tensor([5, 5])
    assert not torch.equal(
        model.train().states(SequenceBatch(items, lengths)), model.states(SequenceBatch(items, lengths))
    )
    assert torch.equal(model.eval().states(SequenceBatch(items, lengths)), model.states(SequenceBatch(items, lengths)))


def test_the_seed_decides_the_weights_and_nothing_else_is_touched() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, second, other = SASRec(dim=8).build(ITEMS, 1), SASRec(dim=8).build(ITEMS, 1), SASRec(dim=8).build(ITEMS, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.item_table(), second.item_table())
    assert not torch.equal(first.item_table(), other.item_table())


@pytest.mark.parametrize("settings", [{"layers": 0}, {"max_length": 1}, {"dim": 1, "heads": 1}])
def test_extremes_can_be_built(settings: dict[str, Any]) -> None:
    model = network(**settings).eval()
    items = histories(2, model.max_length)
    states = model.states(SequenceBatch(items, torch.full((2,), model.max_length)))
    assert states.shape == (2, model.max_length, model.dim)
    assert torch.isfinite(states).all()


def test_heads_that_do_not_divide_the_width_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ValidationError, match="heads = 3 does not divide dim = 64"):
        SASRec(heads=3)
    with pytest.raises(ConfigError, match=r"model: heads = 5 does not divide dim = 16"):
        load_settings(DistillationSettings, None, ["model.dim=16", "model.heads=5"], base=dict(EFFORTS["best"]))
