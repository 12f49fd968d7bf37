"""Tables of a rolling evaluation for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from llmd4rec.data.ingest.times import as_text
from llmd4rec.evaluation.rolling_evaluation import RollingEvaluation
from llmd4rec.evaluation.slices import ROLLING_HEADINGS, span
from llmd4rec.log import stdout_console

#: Behind the name of a model that no better than the best of what needs no training.
MARK = " ▼"


def print_rolling(found: RollingEvaluation, title: str) -> None:
    """All tables, and what is to be said of them."""
    console, asked = stdout_console(), found.rolling
    counted, seen = "target" if asked.count_to == "event" else "window", "filtered" if asked.filter_seen else "kept"
    console.print(
        f"{escape(title)} · windows of {span(asked.every)} from {as_text(asked.cut)}, counted to each {counted}, "
        f"seen items {seen}"
    )
    console.print(scorers_table(found))
    for remark in remarks(found):
        console.print(escape(remark))
    for table in (differences_table(found), slices_table(found)):
        if table is not None:
            console.print(table)


def scorers_table(found: RollingEvaluation) -> Table:
    """One row per scorer: its metrics over the windows to be shown, and the main one in every window."""
    table = Table()
    table.add_column("")
    for info in found.metrics.values():
        table.add_column(info.label, justify="right")
    main = found.metrics[found.main_metric]
    for window in found.windows:
        table.add_column(f"{window.number}{'*' if window.number < found.rolling.choose_on else ''}", justify="right")
    table.add_row("targets", *_totals(found), *(f"{count:,}" for count in found.targets()), end_section=True)
    for name in found.kinds:
        marked = f"{name}{MARK}" if found.beats_baselines(name) is False else name
        figures = [info.shown(found.figure(name, metric)) for metric, info in found.metrics.items()]
        table.add_row(marked, *figures, *(_short(main.shown(v)) for v in found.by_window(name, found.main_metric)))
    return table


def remarks(found: RollingEvaluation) -> list[str]:
    """What the table of scorers has to say, a sentence each."""
    said = [f"Per window: {found.metrics[found.main_metric].label}."]
    if found.rolling.choose_on:
        said.append("Weights were chosen on the windows marked *, which are in no total.")
    if any(found.beats_baselines(name) is False for name in found.kinds):
        said.append(f"{MARK.strip()} is no better than {found.best_baseline}, which needs no training.")
    for name, weights in found.weights.items():
        said.append(f"{name} = " + " + ".join(f"{weight:.3g} · {part}" for part, weight in weights.items()))
    return [*said, *found.notes]


def differences_table(found: RollingEvaluation) -> Table | None:
    """Models against the memory, both together against each, and models against each other; None without a model."""
    rows = found.differences()
    if not rows:
        return None
    info = found.metrics[found.main_metric]
    table = Table(title=f"Differences in {info.label}, by user", title_justify="left")
    for name in ("first", "second", "first", "second", "difference", "95% interval", "p"):
        table.add_column(name, justify="right" if table.columns[1:] else "left")
    for each in rows:
        first, second = each.values
        table.add_row(
            each.first,
            each.second,
            info.shown(first),
            info.shown(second),
            f"{second - first:+.4f}",
            "{:+.4f} to {:+.4f}".format(*each.interval),
            f"{each.p:.4f}",
        )
    return table


def slices_table(found: RollingEvaluation) -> Table:
    """HR@10, or the main metric, of every group of targets; with its interval where the group is small."""
    metric = "hr@10" if "hr@10" in found.metrics else found.main_metric
    names = [name for name in found.kinds if name != "popularity"]
    table = Table(title=f"{found.metrics[metric].label} by slice, with 95% intervals", title_justify="left")
    table.add_column("targets with")
    table.add_column("how many", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for heading, groups in found.slices().items():
        table.add_row(f"[bold]{ROLLING_HEADINGS[heading]}[/bold]")
        for label, group in groups.items():
            table.add_row(f"  {label}", f"{group['targets']:,}", *_cells(group, names, metric))
        table.add_section()
    newcomers = found.without_history()
    if newcomers["targets"]:
        cells = _cells(newcomers, names, metric)
        table.add_row("users without history (not in the totals)", f"{newcomers['targets']:,}", *cells)
    return table


def _cells(group: dict[str, Any], names: Sequence[str], metric: str) -> list[str]:
    """`.044 (.02–.09)`."""
    cells = []
    for name in names:
        values = group["scorers"].get(name, {})
        if metric not in values:
            cells.append("")
            continue
        interval = values.get(f"{metric}_interval")
        bounds = "" if interval is None else "\n" + "–".join(_short(f"{end:.3f}") for end in interval)
        cells.append(_short(f"{values[metric]:.4f}") + bounds)
    return cells


def _totals(found: RollingEvaluation) -> list[str]:
    first = next(iter(found.kinds))
    return [f"{found.part(first, 'shown').height:,}", *[""] * (len(found.metrics) - 1)]


def _short(figure: str) -> str:
    return figure.removeprefix("0") if figure.startswith("0.") else figure
