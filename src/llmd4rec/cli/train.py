"""`llmd4rec train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmd4rec.distillation.efforts import EFFORTS, Effort

if TYPE_CHECKING:
    from llmd4rec.distillation.settings import DistillationSettings
    from llmd4rec.runs.estimates import RunEstimate


def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file of settings; leave it out for all defaults.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="Folder made by `llmd4rec prepare`.")] = None,
    run: Annotated[Path | None, typer.Option("--run", "-r", help="Run folder; an unfinished run is continued.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
    effort: Annotated[
        Effort,
        typer.Option(
            help="What the settings start from. fast: no teacher; default: a wider model and the memory teach; best: "
            "three wider models and a language model teach too, for many times the time.",
        ),
    ] = "default",
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print what would be trained, and who teaches whom; train nothing.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="With --plan and --data: train a few steps of each stage, and say how long it will take."
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Train so many independent stages side by side, each on its share of cores."
        ),
    ] = 1,
    evaluate: Annotated[
        bool, typer.Option(help="Afterwards score every model on the test items and write report.html.")
    ] = True,
    show_settings: Annotated[bool, typer.Option("--show-settings", help="Print every setting and stop.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the results (or the plan) as JSON.")] = False,
) -> None:
    """Train a recommender that learns from stronger models.

    Trains the model that is served (SASRec) without a teacher; then what only teaches: a wider model, and at
    `--effort best` three and a language model; then the model again, taught by them and by the memory, in one or more
    rounds. `--effort fast` trains the first alone. Ensemble weights, epochs and rounds are chosen on the validation
    items. `--plan` shows the stages, and with `--probe` how long they take.

    Whatever stops it, the same command goes on to the same numbers (on a GPU up to rounding). Settings may be changed
    in between where no stage that has begun depends on them, such as those of the language model before its turn.
    Ctrl-C and SIGTERM write a checkpoint first; a second one does not wait for it. Exit codes: 0 finished; 2 something
    is wrong that going on would not cure; 130 Ctrl-C; 143 SIGTERM, and 137 killed, where a scheduler should start it
    again:

      until llmd4rec train -d data/mine -r runs/first; do [ $? -gt 130 ] || break; done

    `--jobs 2` trains independent stages side by side, to the numbers that one after the other gives with as many
    threads each; `threads` sets them. Or several processes share each batch, with results that differ by rounding
    and by what dropout draws (torchrun has exit codes of its own):

      torchrun --nproc-per-node 2 -m llmd4rec train -d data/mine -r runs/first

    Examples:

      llmd4rec train --data data/mine --run runs/first

      llmd4rec train my.yaml -d data/mine -r runs/r3 --set rounds=3 --set llm.layers=8

      llmd4rec train --plan --effort best --set llm=null

      llmd4rec train --plan --probe -d data/mine                      (a minute or two)

      llmd4rec train -d data/mine -r runs/plain --effort fast         (SASRec without a teacher)
    """
    from llmd4rec.config.open_types import import_also_from
    from llmd4rec.config.settings import describe, load_settings
    from llmd4rec.distillation.settings import DistillationSettings

    if show_settings:
        _print_settings(describe(DistillationSettings), effort)
        return
    import_also_from(Path.cwd())
    settings = load_settings(DistillationSettings, config, overrides or (), base=dict(EFFORTS[effort]))
    if probe and not (plan_only and data is not None):
        raise typer.BadParameter(
            "--probe says how long a plan takes on a data set; give it with --plan and --data DATA"
        )
    if plan_only:
        _print_plan(settings, run, json_output, _probed(settings, data, jobs) if probe and data is not None else None)
        return
    if data is None or run is None:
        raise typer.BadParameter("give --data DATA and --run RUN (see --help for an example)")
    if json_output and not evaluate:
        raise typer.BadParameter("--json prints the scores, which --no-evaluate leaves out; give one of the two")

    from llmd4rec.data.dataset import Dataset
    from llmd4rec.report.from_run import write_run_report
    from llmd4rec.runs.pipeline import train as train_run
    from llmd4rec.runs.results import print_table, score_run

    trained = train_run(settings, Dataset.load(data), run, jobs=jobs)
    if evaluate and trained.writes:
        dataset = Dataset.load(data)
        results = score_run(trained, dataset)
        print_table(results, trained, write_run_report(trained, dataset, results), as_json=json_output)


def _probed(settings: DistillationSettings, data: Path, jobs: int) -> RunEstimate:
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.log import logger
    from llmd4rec.runs.probe import probe

    logger.info("probing: a few steps of each stage")
    return probe(settings, Dataset.load(data), jobs=jobs)


def _print_plan(
    settings: DistillationSettings, folder: Path | None, as_json: bool, estimate: RunEstimate | None
) -> None:
    """The stages of the settings, with a probe how long they take, and beside those of a run how long they took."""
    from rich.table import Table

    from llmd4rec.distillation.plan import network_name, plan, ready
    from llmd4rec.log import duration, print_json, stdout_console
    from llmd4rec.runs.invalidation import invalidated
    from llmd4rec.runs.run import Run

    stages = plan(settings)
    done: dict[str, Any] = {}
    if folder is not None and (folder / "run.json").exists():
        run = Run.open(folder)
        lost = invalidated(run.settings, settings)
        done = {stage: values for stage, values in run.record.stages.items() if stage not in lost}
    if as_json:
        values = [stage.identity() | {"needs": stage.needs} for stage in stages]
        print_json(values if estimate is None else {"stages": values, "estimate": estimate.to_json(done)})
        return
    expected = {} if estimate is None else {each.stage: each for each in estimate.stages}
    columns = [
        "stage",
        "model",
        "taught by",
        "starts from",
        "at most",
        "",
        *(["an epoch", "expected"] if expected else []),
    ]
    table = Table(*columns, box=None, header_style="bold")
    for stage in stages:
        start = "scratch" if stage.starts_from is None else stage.starts_from
        if stage.item_embeddings_of is not None:
            start += f", item embeddings of {stage.item_embeddings_of}"
        most = f"{stage.training.epochs} epochs"
        seconds = done.get(stage.id, {}).get("seconds")
        state = "" if seconds is None else f"done in {duration(seconds)}"
        more: list[str] = []
        if stage.id in expected:
            found = expected[stage.id]
            most += f", {duration(found.at_most)}"
            more = [duration(found.epoch), "" if state else _range(found.expected)]
        table.add_row(stage.id, network_name(stage), ", ".join(stage.taught_by) or "-", start, most, state, *more)
    console = stdout_console()
    console.print(table)
    if estimate is not None:
        whole = _range([estimate.wall(done, which) for which in range(3)])
        console.print(
            f"All of it about {whole}, {estimate.jobs} at a time; of it item texts "
            f"{duration(estimate.texts)}, memory {duration(estimate.memory)}. Measured just now on a few steps, with "
            "whatever else this machine does; validation decides how many epochs there are."
        )
    if len(ready(stages, ())) > 1:
        console.print("Stages that need nothing of each other may be trained side by side: --jobs 2.")


def _range(seconds: Sequence[float]) -> str:
    """Few, usual and many seconds for a person; one number where they are alike."""
    from llmd4rec.log import duration

    few, usual, many = map(duration, seconds)
    return usual if few == many else f"{usual} ({few} to {many})"


def _print_settings(rows: object, effort: Effort) -> None:
    import yaml
    from rich.markup import escape
    from rich.table import Table

    from llmd4rec.log import stdout_console

    table = Table("setting", "default", "what it is", box=None, header_style="bold")
    for key, default, description in rows:  # type: ignore[attr-defined]
        table.add_row(key, escape(repr(default)), escape(description))
    console = stdout_console()
    console.print(table)
    other = yaml.safe_dump(dict(EFFORTS[effort]), sort_keys=False)
    console.print(f"\n--effort {effort} lays over these:\n\n{escape(other)}", highlight=False)
