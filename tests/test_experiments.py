"""A study from its file to the page: trials run once, share what comes before the rounds, and are all on the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from experiment_scripts import FOLDER, script

from llmd4rec.config.settings import load_settings
from llmd4rec.data.dataset import Dataset
from llmd4rec.distillation.efforts import RECIPE
from llmd4rec.distillation.plan import Stage, plan
from llmd4rec.distillation.settings import DistillationSettings
from llmd4rec.errors import LLMD4RecError
from llmd4rec.evaluation.slices import tail_items
from llmd4rec.evaluation.validation import validation_value
from llmd4rec.runs.pipeline import train
from llmd4rec.runs.run import Run
from llmd4rec.training.runtime import environment


def call(module: ModuleType, *arguments: object, **seams: object) -> None:
    module.main([*map(str, arguments)], **seams)


def committed() -> dict[str, Any]:
    """This machine, with code that is that of a commit."""
    return environment() | {"commit": "0123456789ab"}


@pytest.fixture
def study_file(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    variants = {"taught": {}, "unweighted": {"distill": {"sample_weights": "none"}}, "plain": {"rounds": 0}}
    path.write_text(
        yaml.safe_dump({"question": "Does it?", "base": tiny(tiny_settings), "variants": variants}, sort_keys=False)
    )
    return path


def tiny(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as a file says them, which is put over the default recipe."""
    return {"teachers": None, **settings}


def test_a_study_and_its_page(
    study_file: Path,
    chain_data: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, tables = script("study"), script("tables")
    seams = {"runs": tmp_path / "runs", "environment": committed}
    arguments = [study_file, "--data", f"chain={chain_data.path}", "--out", tmp_path / "results"]
    call(study, *arguments, "--only", "taught", "plain", **seams)
    folder = tmp_path / "results" / "tiny" / "chain"
    assert {path.name for path in folder.iterdir()} == {"taught-seed0.json", "plain-seed0.json"}
    first = json.loads((folder / "taught-seed0.json").read_text())
    assert first["shared_stages"] == []
    assert set(first["models"]) == {"undistilled", "distilled-round-1", "llm", "llm-round-1"}
    assert "distilled-round-1 over undistilled, test" in first["comparisons"]
    assert "distill.weight.model: 64.0 → 4.0" in first["settings"]
    assert "llm-round-1 over llm, valid" in first["comparisons"]

    before = (folder / "taught-seed0.json").read_bytes()
    call(study, *arguments, **seams)  # only what is missing
    assert (folder / "taught-seed0.json").read_bytes() == before
    other = json.loads((folder / "unweighted-seed0.json").read_text())
    assert other["shared_stages"] == ["undistilled", "llm"]
    assert "commit" in other["stages"]["undistilled"]
    assert "commit" not in other["stages"]["distilled-round-1"]  # that of the trial itself
    for name in ("undistilled", "llm"):  # the very same models
        assert other["models"][name] == first["models"][name]
    assert other["stages"]["distilled-round-1"] != first["stages"]["distilled-round-1"]
    plain = json.loads((folder / "plain-seed0.json").read_text())
    assert plain["shared_stages"] == ["undistilled"]
    assert "test" not in capsys.readouterr().out  # variants are chosen by validation

    call(tables, "--results", tmp_path / "results", "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    for variant in ("taught", "unweighted", "plain"):
        assert f"| {variant} | 0 | 0123456 |" in page
    assert f"{first['models']['distilled-round-1']['test']['ndcg@10']:.4f}" in page


def test_a_reference_is_what_the_other_variants_are_compared_with(
    study_file: Path,
    chain_data: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, tables = script("study"), script("tables")
    seams = {"runs": tmp_path / "runs", "environment": committed}
    values = yaml.safe_load(study_file.read_text()) | {"reference": ["plain"]}
    taught = {"llm": None, "distill": {"source": "self"}}
    values["variants"] = {"plain": {"rounds": 0, "model": {"dim": 4}}, "taught": taught}
    study_file.write_text(yaml.safe_dump(values, sort_keys=False))
    call(study, study_file, "--data", f"chain={chain_data.path}", "--out", tmp_path / "results", **seams)
    folder = tmp_path / "results" / "tiny" / "chain"
    reference, taught = (json.loads((folder / f"{name}-seed0.json").read_text()) for name in ("plain", "taught"))
    assert not any("over plain" in name for name in reference["comparisons"])
    theirs = reference["models"]["undistilled"]["test"]["ndcg@10"]
    for ours in ("undistilled", "distilled-round-1"):
        gain = taught["comparisons"][f"{ours} over plain, test"]["all"]["ndcg@10"]["relative_percent"]
        assert gain == pytest.approx(100 * (taught["models"][ours]["test"]["ndcg@10"] / theirs - 1), abs=0.01)

    call(tables, "--results", tmp_path / "results", "--out", tmp_path / "page.md")
    lines = (tmp_path / "page.md").read_text().splitlines()
    at = lines.index("| gain of the model | undistilled, over plain | p | distilled, over plain | p |")
    assert lines[at + 1].count("|") == lines[at].count("|")
    assert lines[at + 2].startswith("| taught | ")
    assert f"| {gain:+.1f}% |" in lines[at + 2]

    values["reference"] = ["taut"]
    study_file.write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit):
        call(study, study_file, "--data", f"chain={chain_data.path}")
    assert "the reference 'taut' is no variant" in capsys.readouterr().err


@pytest.mark.parametrize("commit", ["0123456789ab-dirty", None])
def test_results_are_kept_of_committed_code_only(
    commit: str | None, study_file: Path, chain_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = script("study")
    arguments = [study_file, "--data", f"chain={chain_data.path}", "--only", "plain"]
    seams: dict[str, Any] = {"runs": tmp_path / "runs", "environment": lambda: environment() | {"commit": commit}}
    with pytest.raises(SystemExit):
        call(study, *arguments, **seams)
    assert "commit first, or give another --out" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    call(study, *arguments, "--out", tmp_path / "elsewhere", **seams)
    kept = json.loads((tmp_path / "elsewhere" / "tiny" / "chain" / "plain-seed0.json").read_text())
    assert kept["environment"]["commit"] == commit


def test_seeds_become_a_mean_and_a_deviation() -> None:
    spread = script("tables").spread
    assert spread([0.1]) == "0.1000"
    assert spread([0.1, None, 0.2]) == "0.1500 ± 0.0707"
    assert spread([None]) == ""


def test_older_results_are_read_in_the_words_of_now() -> None:
    """Former and present names of the same models give the same page."""
    tables = script("tables")
    figures = {split: {"ndcg@10": 0.1} for split in ("valid", "test")}
    groups = {"later_day": {"ndcg@10": {"relative_percent": 3.0, "p": 0.1}}}
    compared = {"hits": {}, "all": {"ndcg@10": {"relative_percent": 2.0, "p": 0.01}}}
    common = {"seed": 0, "environment": {"commit": "0123456789ab"}}
    older = common | {
        "models": dict.fromkeys(("crm alone", "crm distilled", "wide alone", "llm alone", "llm distilled"), figures),
        "comparisons": dict.fromkeys(
            (
                "crm distilled over crm alone, test",
                "llm distilled over llm alone, test",
                "wide alone over crm alone, test",
                "crm distilled over texts, test",
            ),
            compared | groups,
        ),
    }
    newer = common | {
        "models": dict.fromkeys(("undistilled", "distilled-round-2", "teacher-1", "llm", "llm-round-1"), figures),
        "comparisons": dict.fromkeys(
            (
                "distilled-round-2 over undistilled, test",
                "llm-round-1 over llm, test",
                "teacher-1 over undistilled, test",
                "distilled-round-2 over texts, test",
            ),
            compared | {"next_day": groups["later_day"]},
        ),
    }
    pages = [
        [
            make({"some": [tables.in_words_of_now(trial)]})
            for make in (tables.table, tables.reference_table, tables.slice_table)
        ]
        for trial in (older, newer)
    ]
    assert pages[0] == pages[1]
    table, reference, slices = pages[0]
    assert "| gain of the model, test | p | gain of llm, test | p |" in table
    assert "| some |  |  | +2.0% | 0.0100 |" in reference
    assert slices.endswith("| some | +2.0% |  |  | +3.0% |")


@pytest.mark.parametrize("path", sorted((FOLDER / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_of_every_study_is_valid(path: Path) -> None:
    module = script("study")
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert study["question"]
    for name, changes in study["variants"].items():
        values = module.merged(study["base"] or {}, changes or {})
        plan(module.over_recipe(values, f"{path.name}, {name}", study.get("effort")))


@pytest.mark.parametrize("path", sorted((FOLDER / "searches").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_search_starts_inside_its_space(path: Path, search: ModuleType) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    space = {name: search._distribution(name, given) for name, given in values["space"].items()}
    assert search.default_point(values, space).keys() == space.keys()


def example(name: str) -> DistillationSettings:
    """The settings that the command line makes of a file of examples/."""
    return load_settings(DistillationSettings, FOLDER.parent / "examples" / f"{name}.yaml", base=RECIPE)


def test_the_papers_method_is_the_same_as_an_example_and_in_its_study() -> None:
    module = script("study")
    study = yaml.safe_load((FOLDER / "studies" / "paper.yaml").read_text(encoding="utf-8"))
    for variant, name in (("paper", "paper"), ("two-models", "two-models")):
        values = module.merged(study["base"], study["variants"][variant])
        studied, shown = module.over_recipe(values, variant), example(name)
        assert plan(studied) == plan(shown)
        assert (studied.rounds, studied.round_patience, studied.evaluation) == (
            shown.rounds,
            shown.round_patience,
            shown.evaluation,
        )


def test_what_the_examples_train() -> None:
    def who_teaches(name: str) -> dict[str, tuple[str, ...]]:
        return {stage.id: stage.taught_by for stage in plan(example(name))}

    teachers = ("teacher-1", "teacher-2", "teacher-3")
    taught = dict.fromkeys(("distilled-round-1", "beside-memory"), ("undistilled", "memory"))
    assert who_teaches("demo") == {"undistilled": (), **taught}
    assert who_teaches("without-llm") == {
        "undistilled": (),
        **dict.fromkeys(teachers, ()),
        "distilled-round-1": (*teachers, "undistilled"),
    }
    for name in ("paper", "two-models"):
        assert who_teaches(name) == {
            "undistilled": (),
            "llm": (),
            "llm-round-1": ("undistilled",),
            "distilled-round-1": ("llm-round-1",),
            "llm-round-2": ("distilled-round-1",),
            "distilled-round-2": ("llm-round-2",),
            "llm-round-3": ("distilled-round-2",),
            "distilled-round-3": ("llm-round-3",),
        }
        last = plan(example(name))[-1]
        assert isinstance(last, Stage)
        assert last.starts_from == "distilled-round-2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.yaml", "--data", "a=b"], "nope.yaml is not a file"),
        (["STUDY", "--data", "a"], "'a' is not NAME=FOLDER"),
        (["STUDY", "--data", "a=b", "--only", "x"], "has no variant 'x'; it has taught, unweighted, plain"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(script("study"), *[study_file if part == "STUDY" else part for part in arguments])
    assert message in capsys.readouterr().err


# ---- searches -------------------------------------------------------------------------------------------------------
@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return script("search")


@pytest.fixture
def search_file(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    path = tmp_path / "rate.yaml"
    space = {
        "training.model.learning_rate": {"low": 1e-5, "high": 0.1, "log": True},
        "model.layers": {"choices": [1, 2]},
    }
    base = tiny(tiny_settings) | {"rounds": 0}
    path.write_text(yaml.safe_dump({"question": "How fast?", "stage": "undistilled", "base": base, "space": space}))
    return path


def test_a_search_starts_from_the_default_and_goes_on_to_the_same_points(
    search: ModuleType,
    search_file: Path,
    chain_data: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [search_file, "--data", f"chain={chain_data.path}"]
    call(search, *arguments, "--out", tmp_path / "whole", "--trials", 5, runs=tmp_path / "runs")
    whole = json.loads((tmp_path / "whole" / "rate-chain-seed0.json").read_text())
    base = yaml.safe_load(search_file.read_text())["base"]
    settings = search.over_recipe(base, "the test")
    rate, layers = settings.training.model.learning_rate, settings.model.layers
    default = {"training.model.learning_rate": rate, "model.layers": layers}
    assert whole["trials"][0]["point"] == default
    assert whole["trials"][0]["value"] == 1
    by_hand = train(settings, chain_data, tmp_path / "by hand").validation_of("undistilled")
    assert whole["trials"][0]["validation_ndcg"] == {"chain": pytest.approx(by_hand)}
    for trial in whole["trials"]:
        assert trial["value"] == pytest.approx(trial["validation_ndcg"]["chain"] / by_hand)
    assert len({json.dumps(trial["point"], sort_keys=True) for trial in whole["trials"]}) == 5
    assert "test" not in capsys.readouterr().out

    page = script("tables").search_section(whole)
    best = max(whole["trials"], key=lambda trial: trial["value"])
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 5
    assert rows[0].endswith(f"| {best['validation_ndcg']['chain']:.4f} | {best['value']:.3f} |")

    call(search, *arguments, "--out", tmp_path / "parts", "--trials", 5, "--seed", 1, runs=tmp_path / "runs")
    other = json.loads((tmp_path / "parts" / "rate-chain-seed1.json").read_text())
    assert other["trials"][1]["point"] != whole["trials"][1]["point"]
    half = whole | {"trials": whole["trials"][:3]}
    (tmp_path / "parts" / "rate-chain-seed0.json").write_text(json.dumps(half))
    call(search, *arguments, "--out", tmp_path / "parts", "--trials", 5, runs=tmp_path / "runs")
    assert json.loads((tmp_path / "parts" / "rate-chain-seed0.json").read_text())["trials"] == whole["trials"]


def test_a_search_looks_where_earlier_trials_were_good(search: ModuleType) -> None:
    space = {"distill.weight.model": search._distribution("the weight", {"low": 1, "high": 100, "log": True})}
    trials: list[dict[str, Any]] = []
    for _ in range(30):
        point = search.next_point(space, trials, 0, 30)
        trials.append({"point": point, "value": -abs(point["distill.weight.model"] - 20)})
    late = [trial["value"] for trial in trials[20:]]
    early = [trial["value"] for trial in trials[:10]]
    assert sum(late) / 10 > sum(early) / 10 + 5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.layers", {"choices": [3, 4]}, "default of model.layers, [12], is not in"),
        ("model.layers", {"from": 3}, "space of model.layers is"),
        ("model.depth", {"low": 1, "high": 2}, "default of model.depth, None, is not in"),
    ],
)
def test_a_space_that_cannot_be_searched(
    search: ModuleType,
    search_file: Path,
    chain_data: Dataset,
    tmp_path: Path,
    key: str,
    value: dict[str, Any],
    message: str,
) -> None:
    values = yaml.safe_load(search_file.read_text())
    search_file.write_text(yaml.safe_dump(values | {"space": {key: value}}))
    with pytest.raises(LLMD4RecError, match=message):
        call(search, search_file, "--data", f"chain={chain_data.path}", "--out", tmp_path, runs=tmp_path / "runs")


def test_a_trial_that_diverges_is_worth_nothing_and_the_search_goes_on(
    search: ModuleType, search_file: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    values = yaml.safe_load(search_file.read_text())
    rate = values["base"]["training"]["model"]["learning_rate"]
    space = {"training.model.learning_rate": {"choices": [rate, 1e30]}}
    search_file.write_text(yaml.safe_dump(values | {"space": space}))
    arguments = [search_file, "--data", f"chain={chain_data.path}", "--out", tmp_path, "--trials", 6]
    call(search, *arguments, runs=tmp_path / "runs")
    trials = json.loads((tmp_path / "rate-chain-seed0.json").read_text())["trials"]
    assert {(trial["point"]["training.model.learning_rate"], trial["value"]) for trial in trials} == {
        (rate, 1),
        (1e30, 0),
    }


def test_a_search_does_not_mix_with_another(
    search: ModuleType, search_file: Path, chain_data: Dataset, tmp_path: Path
) -> None:
    arguments = [search_file, "--data", f"chain={chain_data.path}", "--out", tmp_path, "--trials", 1]
    call(search, *arguments, runs=tmp_path / "runs")
    values = yaml.safe_load(search_file.read_text())
    search_file.write_text(yaml.safe_dump(values | {"space": {"model.layers": {"choices": [1, 2, 3]}}}))
    with pytest.raises(LLMD4RecError, match="another search"):
        call(search, *arguments, runs=tmp_path / "runs")


def test_what_repeating_the_last_items_would_find() -> None:
    """Distinct items before the target, latest first: 5 2 7 before a 2; the second user's target is new."""
    offsets, items = np.array([0, 6, 9]), np.array([7, 2, 7, 2, 5, 2, 1, 1, 3])
    ranks = script("repeats").last_seen_ranks(offsets, items, np.array([5, 8]))
    assert ranks.tolist() == [2, 0]
    assert script("repeats").last_seen_ranks(offsets, items, np.array([2, 7])).tolist() == [2, 1]


def test_popularity_is_added_to_scores(
    chain_run: Path, chain_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tau so large that nothing else counts ranks by popularity alone, whose NDCG can be worked out."""
    call(script("popularity"), chain_run, chain_data.path, "--taus", "0", "1e6")
    out = capsys.readouterr().out.splitlines()
    rare = tail_items(chain_data.train_counts)
    assert f"validation targets: {np.mean([rare[chain_data.items[p]] for p in chain_data.valid]):.1%} tail items" in out
    lines = [line.split() for line in out[4:]]
    taus, stages = ("+0.00", "+1000000.00"), ("undistilled", "distilled-round-1")
    assert [line[:2] for line in lines] == [[stage, tau] for stage in stages for tau in taus]
    unchanged = validation_value(Run.open(chain_run).load("undistilled"), chain_data)
    assert float(lines[0][2]) == pytest.approx(unchanged, abs=6e-5)
    counts, gains = chain_data.train_counts, []
    for user, position in enumerate(chain_data.valid):
        target, seen = chain_data.items[position], set(chain_data.items[chain_data.offsets[user] : position])
        candidates = [item for item in range(chain_data.num_items) if item not in seen]
        rank = sum(counts[item] > counts[target] for item in candidates) + 1
        ties = sum(counts[item] == counts[target] for item in candidates)
        gains.append((1 / np.log2(1 + rank), 1 / np.log2(ties + rank)))  # best and worst among equals
    best, worst = np.mean(gains, axis=0)
    assert worst - 1e-4 <= float(lines[1][2]) <= best + 1e-4


def test_a_command_names_nobodys_folders() -> None:
    typed = [
        "experiments/study.py",
        "a.yaml",
        "--data",
        "beauty=/home/me/b",
        "toys=/t",
        "--out",
        "/tmp/x",
        "--seeds",
        "0",
    ]
    assert script("study").command(typed) == (
        "python experiments/study.py a.yaml --data beauty=FOLDER toys=FOLDER --seeds 0"
    )
    assert script("study").command(["experiments/search.py", "--out=/tmp/x"]) == "python experiments/search.py"


def test_the_figure_of_efforts_has_every_point() -> None:
    points = {
        "memory alone": {"seconds": 9.0, "with memory": 0.0924},
        "fast": {"seconds": 90.0, "with memory": 0.0953, "network alone": 0.0866},
        "best": {"seconds": 900.0, "with memory": 0.0961, "network alone": 0.0899},
    }
    module = script("efforts")
    other = {name: values | {"seconds": values["seconds"] + 2} for name, values in points.items() if name != "best"}
    [mean] = module.means([{"data": "industrial", "points": points}, {"data": "industrial", "points": other}])
    assert mean["points"].keys() == {"memory alone", "fast"}  # which both seeds have
    assert mean["points"]["fast"] == {"seconds": 91.0, "with memory": 0.0953, "network alone": 0.0866}
    drawn = module.figure([{"data": "industrial", "points": points}, {"data": "beauty", "points": points}])
    root = ElementTree.fromstring(drawn)
    dots = [each for each in root.iter() if each.tag.endswith("circle")]
    assert len(dots) == 2 * (3 + 2)
    across = [float(each.get("cx", 0)) for each in dots[:3]]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # each ten times the one before
    texts = {each.text for each in root.iter() if each.tag.endswith("text")}
    assert {"memory alone", "fast", "900 s", ".0961", ".0866", "network alone"} <= texts
    best, worst = dots[2], dots[3]
    assert float(best.get("cy", 0)) < float(worst.get("cy", 0))  # more accurate is higher
