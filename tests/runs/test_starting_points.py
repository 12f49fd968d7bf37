"""Where the training of a stage starts: afresh or from the round before, with whose item embeddings and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from settings_of import changed, parse_settings
from torch import Tensor
from whole_runs import same, untrained

from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.plan import find, plan
from llmd4rec.errors import ConfigError
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.runs.run import Run


def item_table(run: Run, stage: str) -> Tensor:
    return run.load(stage).item_table().detach()


# ---- item embeddings of the language model ----------------------------------------------------------------------
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("inject", ["every-round", "once", "never"])
def test_injection(inject: str, warm: bool, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path) -> None:
    settings = untrained(tiny_settings, llm__inject=inject, distill__warm_start=["llm"] if warm else [], rounds=2)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    injected = {stage: run.weights_of(stage)["injected"] for stage in ("llm", "llm-round-1", "llm-round-2")}
    first, newer = item_table(run, "undistilled"), item_table(run, "distilled-round-1")
    assert not torch.equal(first, newer)
    if inject == "every-round":
        assert torch.equal(injected["llm"], first)
        assert torch.equal(injected["llm-round-1"], first)
        # A model trained anew has other axes: a language model that goes on keeps the item embeddings it knows.
        assert torch.equal(injected["llm-round-2"], first if warm else newer)
    elif inject == "once":
        assert all(torch.equal(table, first) for table in injected.values())
    else:
        for table in injected.values():
            assert not torch.equal(table, first)
            assert not torch.equal(table, newer)
        assert torch.equal(injected["llm"], injected["llm-round-2"]) == warm


def test_a_language_model_that_goes_on_reads_a_model_that_goes_on(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = changed(tiny_settings, rounds=2, distill__warm_start=["model", "llm"])
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    first, newer = item_table(run, "undistilled"), item_table(run, "distilled-round-1")
    assert not torch.equal(first, newer)
    assert torch.equal(run.weights_of("llm-round-1")["injected"], first)
    assert torch.equal(run.weights_of("llm-round-2")["injected"], newer)


def test_without_injection_the_item_table_is_the_language_models_own(tiny_settings: dict[str, Any]) -> None:
    def starts_from_model(values: dict[str, Any]) -> bool:
        network: Any = find(plan(parse_settings(values)), "llm").network
        return bool(network.starts_from_model(8))

    auto = changed(tiny_settings, llm__init_table_from_model="auto")
    assert starts_from_model(auto)
    assert not starts_from_model(changed(auto, llm__inject="never"))
    with pytest.raises(ConfigError, match="llm: init_table_from_model needs item embeddings; set inject to once"):
        parse_settings(changed(tiny_settings, llm__inject="never", llm__init_table_from_model=True))


@pytest.mark.parametrize(
    ("change", "width", "starts"),
    [
        ({"llm__dim": "model"}, 8, True),
        ({"llm__dim": 8}, 8, True),
        ({"llm__dim": 16}, 16, False),
        ({"llm__dim": None}, 32, False),  # as wide as the language model
        ({"llm__dim": "model", "llm__item_features": "text", "texts__encoder": "llm"}, 8, False),
    ],
)
def test_the_llm_starts_from_the_models_table_wherever_it_can(
    change: dict[str, Any], width: int, starts: bool, tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    settings = untrained(tiny_settings, llm__init_table_from_model="auto", **change)
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    llm = run.load("llm")
    assert llm.dim == width
    with torch.no_grad():
        difference = llm.item_table()[:, :8] - item_table(run, "undistilled")
    assert bool(difference.abs().max() < 1e-6) == starts


def test_settings_that_contradict_each_other_are_refused_at_once(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"set llm\.dim to model"):
        parse_settings(changed(tiny_settings, llm__init_table_from_model=True, llm__dim=16))
    text = {"llm__dim": "model", "llm__item_features": "text"}
    with pytest.raises(ConfigError, match=r"llm: .*; set item_features to id or id\+text"):
        parse_settings(changed(tiny_settings, llm__init_table_from_model=True, **text))
    with pytest.raises(ConfigError, match=r"set texts\.encoder to a sentence encoder"):
        parse_settings(changed(tiny_settings, llm__pretrained=False, texts__encoder="llm"))


# ---- students ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("student", "first", "taught"), [("model", "undistilled", "distilled-round-1"), ("llm", "llm", "llm-round-1")]
)
def test_a_student_starts_afresh_or_goes_on(
    student: str,
    first: str,
    taught: str,
    warm: bool,
    tiny_settings: dict[str, Any],
    chain_data: Dataset,
    tmp_path: Path,
) -> None:
    """The first stages are trained; epoch 0 of the round is what it started with."""
    settings = changed(tiny_settings, distill__warm_start=[student] if warm else [])
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    start = next(line for line in run.metrics() if (line["stage"], line["epoch"]) == (taught, 0))
    assert run.validation_of(first) > 0.3
    assert (start["validation"] == run.validation_of(first)) == warm


def test_a_student_that_goes_on_starts_as_the_model_it_was(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """What was merged into its item embeddings must not be mixed in again."""
    settings = changed(
        tiny_settings,
        distill__warm_start=["model", "llm"],
        distill__students=["model"],
        distill__source="self",
        model__item_features="id+neighbours",
        training__model__round_epochs=0,
    )
    run = parse_settings(settings).fit(chain_data, tmp_path / "run")
    assert same(run.weights_of("undistilled"), run.weights_of("distilled-round-1"))


def test_texts_help_to_train_the_model_and_leave_it_as_it_was(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    usual = changed(tiny_settings, texts__encoder="llm", rounds=0)
    runs = {
        features: parse_settings(changed(usual, model__item_features=features)).fit(chain_data, tmp_path / features)
        for features in ("id", "id+text")
    }
    plain, merged = (run.weights_of("undistilled") for run in runs.values())
    assert {name: t.shape for name, t in plain.items()} == {name: t.shape for name, t in merged.items()}
    assert not torch.equal(plain["items.weight"], merged["items.weight"])
    records = [run.record.stages["undistilled"] for run in runs.values()]
    assert records[0]["parameters"] == records[1]["parameters"]
    # What is served is what was validated.
    best = next(line for line in runs["id+text"].metrics() if line["epoch"] == records[1]["best_epoch"])
    served = validation_value(runs["id+text"].load("undistilled"), chain_data)
    assert served == pytest.approx(best["validation"], abs=1e-6)


def test_the_control_for_pretraining_has_the_same_network_with_other_weights(
    tiny_settings: dict[str, Any], chain_data: Dataset, tmp_path: Path
) -> None:
    """And it is the same random one in every stage, though only adapters are saved."""
    bases = {}
    for pretrained in (True, False):
        settings = untrained(tiny_settings, llm__pretrained=pretrained, distill__students=["llm"])
        run = parse_settings(settings).fit(chain_data, tmp_path / str(pretrained))
        for stage in ("llm", "llm-round-1"):
            model: Any = run.load(stage)
            parameters = model.decoder.named_parameters()
            bases[pretrained, stage] = {name: p.detach() for name, p in parameters if "lora" not in name and p.ndim > 1}
    real, random_one = bases[True, "llm"], bases[False, "llm"]
    assert len(real) > 7
    assert same(random_one, bases[False, "llm-round-1"])
    assert {name: p.shape for name, p in real.items()} == {name: p.shape for name, p in random_one.items()}
    assert not any(torch.equal(real[name], random_one[name]) for name in real)
