from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from llmd4rec.config.settings import check, describe, differences, dump_settings, load_settings, save_settings
from llmd4rec.distillation.efforts import EFFORTS
from llmd4rec.distillation.plan import find, plan
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import ConfigError
from llmd4rec.models.sequential import GRU4Rec, SASRec

DEFAULT = load_settings(DistillationSettings, None, base=dict(EFFORTS["best"]))


def load(tmp_path: Path, text: str, *overrides: str) -> DistillationSettings:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(DistillationSettings, path, overrides, base=dict(EFFORTS["best"]))


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(DistillationSettings, None, overrides, base=dict(EFFORTS["best"]))
    assert caught.value.remedy
    return caught.value.what


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "null", "---\n"])
def test_an_empty_file_means_all_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == DEFAULT


def test_nested_values_and_overrides(tmp_path: Path) -> None:
    settings = load(
        tmp_path, "rounds: 5\nmodel: {dim: 32, heads: 4}\n",
        "model.dim=16", "training.model.clip=null", "evaluation.cutoffs=[1, 3]", "distill.scale_by_t2=false",
        "training.llm.learning_rate=1e-4", "llm.lora.r=4", "llm.prompt=''", "llm.model=a=b",
    )  # fmt: skip
    assert isinstance(settings.model, SASRec)
    assert (settings.rounds, settings.model.dim, settings.model.heads) == (5, 16, 4)
    assert settings.training.model.clip is None
    assert settings.evaluation.cutoffs == (1, 3)
    assert settings.distill.scale_by_t2 is False
    assert settings.training.llm.learning_rate == 1e-4
    assert settings.llm is not None
    assert settings.llm.lora is not None
    assert settings.llm.lora.r == 4
    assert settings.llm.model == "a=b"


def test_changing_one_setting_leaves_the_others_at_their_defaults() -> None:
    """The two models have different training defaults; naming one of the LLM's must not bring the model's."""
    for key, value in (
        ("training.llm.epochs", 3),
        ("training.model.epochs", 3),
        ("llm.lora.r", 4),
        ("model.max_length", 8),
    ):
        changed = load_settings(DistillationSettings, None, [f"{key}={value}"], base=dict(EFFORTS["best"]))
        lines = differences(DEFAULT, changed)
        assert [line.split(":")[0] for line in lines] == [key]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("round", "rounds"),
        ("model.dimm", "model.dim"),
        ("training.llm.epoch", "training.llm.epochs"),
        ("llm.lora.rr", "llm.lora.r"),
        ("epochs", "training.model.epochs"),
        ("model.epochs", "training.model.epochs"),
        ("distill.wight", "distill.weight"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    what = refused(f"{key}=1")
    assert f"unknown setting {key!r}" in what
    assert repr(nearest) in what


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rounds=many", "rounds = 'many': input should be a valid integer"),
        ("rounds=-1", "rounds = -1: input should be greater than or equal to 0"),
        ("model=5", "model = 5: must be the name of a model, a group of its settings, or an instance"),
        ("distill.students=[both]", "'model' or 'llm'"),
        ("llm.layers=few", "llm.layers = 'few': input should be a valid integer"),
        ("evaluation.cutoffs=[]", "evaluation.cutoffs"),
        ("evaluation.cutoffs=[5, 0]", "evaluation.cutoffs = 0"),
        ("training.model.learning_rate=.inf", "training.model.learning_rate = inf"),
        ("distill.weight.model=.nan", "distill.weight.model = nan"),
        ("model.heads=3", "model: heads = 3 does not divide dim = 64"),
        ("model.dim.wide=3", "model.dim"),
        ("teachers=[{}, {nam: ligr}]", "'nam' is no setting of sasrec"),
        ("teachers=[{name: lstm}]", "teachers.0.name = 'lstm': no model has this name"),
        ("teachers=[{without: [id]}]", "teachers.0.without: no item feature is called 'id'"),
        ("teachers=few", "must be `default`, null, a number, or a list"),
        ("teachers=-1", "must be `default`, null, a number, or a list"),
        ("teachers=true", "must be `default`, null, a number, or a list"),
        ("teachers=[{dim: 255}]", "heads = 2 does not divide dim = 255"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_with_its_key(override: str, expected: str) -> None:
    assert expected in refused(override)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "rounds: x\nmodel:\n  dimm: 3\n", "seed=-1")
    assert all(key in caught.value.what for key in ("run.yaml", "rounds", "model.dimm", "seed"))


@pytest.mark.parametrize("override", ["rounds", "=3", "", " =1"])
def test_an_override_is_key_and_value(override: str) -> None:
    assert "is not KEY=VALUE" in refused(override)


def test_other_bad_overrides(tmp_path: Path) -> None:
    assert "not a YAML value" in refused("rounds=[1")
    with pytest.raises(ConfigError, match="'rounds' is no group of settings"):
        load(tmp_path, "rounds: 3", "rounds.most=4")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "42"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not settings"):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load(tmp_path, "a: [1\nb: }")
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(DistillationSettings, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(DistillationSettings, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(DistillationSettings, tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="keys should be strings"):
        load(tmp_path, "1: 2")


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    settings = load_settings(
        DistillationSettings, None,
        ["seed=7", "llm.prompt=\"Étant donné: 'x' # 🎬\"", "llm.lora.targets=[q_proj]", "training.model.clip=0.1"],
        base=dict(EFFORTS["best"]),
    )  # fmt: skip
    save_settings(settings, tmp_path / "config.yaml")
    assert load_settings(DistillationSettings, tmp_path / "config.yaml") == settings


def test_settings_files_of_the_examples() -> None:
    """Each says what it is about; the paper's has nothing of ours in how models are taught."""
    files = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.yaml"))
    settings = {path.stem: load_settings(DistillationSettings, path, base=dict(EFFORTS["default"])) for path in files}
    assert {"without-llm", "demo", "paper"} <= settings.keys()
    paper = settings["paper"]
    assert (paper.teachers, paper.distill.source, paper.distill.sample_weights) == ((), "partner", "rank")
    assert set(paper.distill.students) == {"model", "llm"}
    assert paper.llm is not None
    stages = plan(paper)
    assert find(stages, "distilled-round-1").network == paper.model
    assert find(stages, "llm-round-1").network == paper.llm
    assert find(stages, "distilled-round-1").training == paper.training.model
    assert (paper.model.item_features, paper.llm.item_features, paper.llm.dim, paper.llm.tie_table) == (
        (),
        "id",
        None,
        False,
    )
    assert not paper.llm.starts_from_model(paper.model.dim)


def test_every_default_is_written_and_described(tmp_path: Path) -> None:
    written = yaml.safe_load(dump_settings(DEFAULT))

    def at(key: str) -> object:
        value = written
        for part in key.split("."):
            value = value[part]
        return value

    rows = list(describe(DistillationSettings))
    assert len(rows) > 50
    assert {"teachers", "teachers.*.name", "teachers.*.without"} <= {key for key, _, _ in rows}
    others = {key: default for key, default, description in rows if description.startswith("(")}
    assert {"model.hidden": 128, "model.alpha": 0.7, "distill.method.items": 10}.items() <= others.items()
    leader = next(row for row in rows if row[0] == "distill.method.weight" and row[2].startswith("(leader)"))
    assert leader[1] == 0.4
    for key, default, description in rows:
        assert description, key
        if ".*." in key or description.startswith("("):
            continue
        value = at(key)
        # Which the effort has otherwise.
        if key in ("teachers", "llm", "distill.memory", "distill.beside_memory", "training.model.epochs"):
            continue
        if not isinstance(value, dict):
            assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "training:\n  model: {epochs: 1}\nrounds: 0\ntraining:\n  model: {batch: 256}\n",
            "'training' .*line 1 and line 4",
        ),
        ("training:\n  model:\n    epochs: 1\n\n    epochs: 2\n", "'training.model.epochs' .*line 3 and line 5"),
        ('{"training": {"model": {"epochs": 1,\n "epochs": 2}}}', "'training.model.epochs' .*line 1 and line 2"),
        ("teachers:\n- dim: 8\n  dim: 16\n", "'teachers.0.dim' .*line 2 and line 3"),
        ("training: {}\n'training': {}\n", "'training' .*line 1 and line 2"),
    ],
)
def test_a_key_given_twice_is_an_error_with_both_lines(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_settings(DistillationSettings, tmp_path / "run.yaml")


def test_a_key_given_twice_in_a_value_of_set_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'epochs' stands twice in --set training.model"):
        load_settings(DistillationSettings, None, ["training.model={epochs: 1, epochs: 2}"])


@pytest.mark.parametrize("text", ["training:\n", "training:\n  model:\n", "training: {model: null}\n", "# nothing\n"])
def test_a_block_left_empty_is_as_by_default_and_takes_single_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    settings = load_settings(
        DistillationSettings, tmp_path / "run.yaml", ["training.model.epochs=16"], base=dict(EFFORTS["best"])
    )
    assert settings.training.model.epochs == 16
    plain = load_settings(DistillationSettings, tmp_path / "run.yaml", base=dict(EFFORTS["best"]))
    assert plain == DEFAULT
    without = load_settings(DistillationSettings, None, ["llm=null"], base=dict(EFFORTS["best"]))
    assert without.llm is None, "null where it means something stays"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = "plain"
    dim: int = 8
    clip: float | None = 1.0


class Shop(BaseModel):
    model_config = ConfigDict(extra="forbid")
    renamed: ClassVar[Mapping[str, str]] = {
        "engine": "model",
        "engine.size": "model.dim",
        "engine.colour": "it has never had any effect",
        "wides": "teachers",
        "wides.*.size": "teachers.*.dim",
        "tuning.*.clips": "limits.*.clip",
    }
    model: Part = Part()
    extra: Part | None = None
    teachers: tuple[Part, ...] = ()
    limits: dict[str, Part] = {}
    rounds: int = 1


def refused_by_shop(text: str, tmp_path: Path, *overrides: str) -> str:
    (tmp_path / "shop.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(Shop, tmp_path / "shop.yaml", overrides)
    return caught.value.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine: {dim: 3}", ["'engine.dim' is now 'model.dim'"]),
        ("engine: {size: 3, clip: 2}", ["'engine.size' is now 'model.dim'", "'engine.clip' is now 'model.clip'"]),
        ("engine:\n", ["'engine' is now 'model'"]),
        ("engine: {colour: red}", ["'engine.colour' no longer exists: it has never had any effect"]),
        ("wides: 3", ["'wides' is now 'teachers'"]),
        ("wides: [{}, {size: 3}]", ["'wides.1.size' is now 'teachers.1.dim'"]),
        ("tuning: {a: {clips: 1}, b: {}}", ["'tuning.a.clips' is now 'limits.a.clip'"]),
    ],
)
def test_keys_of_earlier_versions_are_refused_with_their_new_names(tmp_path: Path, text: str, said: list[str]) -> None:
    what = refused_by_shop(text, tmp_path)
    assert all(f"setting {each}" in what for each in said), what
    assert "unknown" not in what
    assert what.count("setting ") == len(said)


def test_old_keys_come_before_the_other_mistakes_which_are_told_too(tmp_path: Path) -> None:
    what = refused_by_shop("modle: 3\nrounds: x\n", tmp_path, "engine.size=3")
    assert (
        what.index("'engine.size' is now 'model.dim'")
        < what.index("rounds = 'x'")
        < what.index("'modle'; did you mean")
    )


def test_a_file_and_overrides_are_merged_over_a_base(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    base: dict[str, Any] = {"model": {"dim": 16, "clip": 2.0}, "extra": {"dim": 4}, "teachers": [{"dim": 1}]}

    def over(text: str, *overrides: str) -> Shop:
        path.write_text(text)
        return load_settings(Shop, path, overrides, base)

    assert load_settings(Shop, None, base=base) == check(Shop, base, "base")
    assert over("model: {clip: null}", "extra.dim=5") == Shop(
        model=Part(dim=16, clip=None), extra=Part(dim=5), teachers=(Part(dim=1),)
    )
    assert over("model:\nextra: null\nteachers: []") == Shop(model=Part(dim=16, clip=2.0)), (
        "an empty group says nothing"
    )
    assert over("model: {name: deep}").model == Part(name="deep", dim=16, clip=2.0)
    base["model"]["name"] = "plain"
    assert over("model: {name: deep}").model == Part(name="deep"), "what belongs to another kind does not stay"
    assert over("", "model.dim=32", "extra.name=deep").model.dim == 32
    assert base["model"] == {"dim": 16, "clip": 2.0, "name": "plain"}, "the base itself is left as it is"
    with pytest.raises(ConfigError, match=r"model\.dim = 'x'"):
        over("model: {dim: x}")


def test_single_settings_of_a_group_that_is_auto_can_be_set(tmp_path: Path) -> None:
    assert EFFORTS["best"]["memory"] == "auto"
    memory = load(tmp_path, "", "memory.content.whitening=0.2").memory
    assert memory is not None
    assert memory.content is not None
    assert (memory.content.whitening, memory.recency) == (0.2, DEFAULT.memory and DEFAULT.memory.recency)


def test_a_setting_of_another_kind_says_whose_it_is() -> None:
    assert "what is chosen here has no setting 'model.hidden'; gru4rec has" in refused("model.hidden=64")
    assert "what is chosen here has no setting 'model.heads'" in refused("model=gru4rec", "model.heads=2")


def test_a_kind_that_is_set_can_be_set_up(tmp_path: Path) -> None:
    model = load(tmp_path, "", "model=gru4rec", "model.hidden=64").model
    assert isinstance(model, GRU4Rec)
    assert model.hidden == 64


def test_an_override_of_one_alias_leaves_the_other(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("model: &part {dim: 3}\nextra: *part\n")
    settings = load_settings(Shop, tmp_path / "shop.yaml", ["model.dim=5"])
    assert (settings.model.dim, settings.extra) == (5, Part(dim=3))
