"""The two tables of a report: what the models of all stages score and cost, and how the run trained them."""

from __future__ import annotations

from collections.abc import Callable

from llmd4rec.distillation.plan import Role
from llmd4rec.evaluation.evaluation import MetricInfo, main_metrics
from llmd4rec.report.charts import esc
from llmd4rec.report.content import PlanRow, ReportContent, StageRow
from llmd4rec.report.words import count, duration, ensemble, figure, share

#: What a table says of a model beside its name.
ROLE_NAMES: dict[Role, str] = {"model": "model", "teacher": "teacher", "llm": "language model"}


def results(content: ReportContent, lead: str) -> str:
    """One row per evaluated stage, with and without the memory, and per method without training.

    Args:
        content: with at least one row.
        lead: the metric that is drawn as a bar too.
    """
    best = max(row.metrics.get(lead, 0.0) for row in content.rows) or 1.0
    names = main_metrics(dict.fromkeys(name for row in content.rows for name in row.metrics))
    columns: list[tuple[str, Callable[[StageRow], str]]] = [
        *(_metric(name, content.info(name), best if name == lead else None) for name in names),
        ("catalogue shown", lambda row: share(row.metrics.get("coverage@10"))),
        ("parameters", lambda row: count(row.parameters)),
        ("training, total", lambda row: duration(row.train_seconds)),
        ("per request", lambda row: "" if row.ms_per_request is None else f"{row.ms_per_request:.3g} ms"),
    ]
    columns = [(name, show) for name, show in columns if any(show(row) for row in content.rows)]
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name, _ in columns)
    body = []
    for row in content.rows:
        kind = f"{row.role} {'in-round' if row.round else 'before-rounds'}{' served' if row.served else ''}"
        mark = " <b>served</b>" if row.served else ""
        if row.below_baseline:
            mark += ' <em title="not better than the best method without training">below the best baseline</em>'
        cells = "".join(
            f'<td class="num" data-name="{esc(column)}">{show(row) or "–"}</td>' for column, show in columns
        )
        body.append(
            f'<tr class="{esc(kind)}"><th scope="row"><i class="swatch {esc(row.role)}"></i>{esc(row.stage)}'
            f"<small>{esc(row.network)}{mark}</small></th>{cells}</tr>"
        )
    return (
        f'<table class="models"><thead><tr><th scope="col">stage</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def plan(content: ReportContent) -> str:
    """One row per stage of the plan, trained or not."""
    columns: list[tuple[str, Callable[[PlanRow], str]]] = [
        ("trains", lambda row: row.network if row.role == "model" else f"{row.network} ({ROLE_NAMES[row.role]})"),
        ("taught by", lambda row: ensemble(row.teachers)),
        ("logit adjustment τ", lambda row: f"{row.logit_adjustment:g}" if row.logit_adjustment else ""),
        ("half-life", lambda row: f"{row.half_life_days:g} days" if row.half_life_days else ""),
        ("learned last", lambda row: f"{row.newest_days:g} days" if row.newest_days else ""),
        ("starts from", _start),
        ("epochs (best)", lambda row: "not trained" if row.epochs is None else f"{row.epochs} ({row.best_epoch})"),
        (f"validation {content.selection}", lambda row: figure(row.validation)),
        ("training", lambda row: duration(row.seconds)),
    ]
    columns = [(name, show) for name, show in columns if any(show(row) for row in content.plan)]
    head = "".join(f'<th scope="col">{name}</th>' for name, _ in columns)
    rows = "".join(
        f'<tr><th scope="row">{esc(row.stage)}</th>'
        + "".join(f"<td>{esc(show(row) or '–')}</td>" for _, show in columns)
        + "</tr>"
        for row in content.plan
    )
    return (
        f'<div class="scroll"><table class="plain"><thead><tr><th scope="col">stage</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _start(row: PlanRow) -> str:
    said = [
        row.starts_from or "",
        f"item embeddings of {row.item_embeddings_of}" if row.item_embeddings_of else "",
        f"rollouts of {row.rollouts_by}" if row.rollouts_by else "",
    ]
    return ", ".join(part for part in said if part)


def _metric(name: str, info: MetricInfo, best: float | None) -> tuple[str, Callable[[StageRow], str]]:
    """The column of a metric; with a bar where the largest value is given."""

    def show(row: StageRow) -> str:
        value = row.metrics.get(name)
        if value is None:
            return ""
        bar = "" if best is None else f'<i class="bar" style="width:{100 * value / best:.1f}%"></i>'
        return esc(info.shown(value)) + bar

    return info.label, show
