"""What a rolling evaluation found, as HTML: a chart over windows, a table of scorers, differences, slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmd4rec.data.ingest.times import as_text
from llmd4rec.evaluation.rolling_evaluation import Kind, RollingEvaluation
from llmd4rec.evaluation.slices import ROLLING_HEADINGS, span
from llmd4rec.report.charts import esc, nice_ticks, path
from llmd4rec.report.words import capital, p_value

#: Colours, as those of models, teachers and language model elsewhere on the page.
_COLOURS: dict[Kind, str] = {"baseline": "baseline", "memory": "teacher", "model": "model", "model and memory": "llm"}


def finding(found: RollingEvaluation) -> str:
    """One sentence: where the windows are, and what is best in them."""
    asked, main = found.rolling, found.metrics[found.main_metric]
    best = max(found.kinds, key=lambda name: found.figure(name, found.main_metric) or 0.0)
    counted = "each target" if asked.count_to == "event" else "the window's start"
    said = (
        f"{len(found.windows)} windows of {span(asked.every)} from {as_text(asked.cut)}; counts are of everything "
        f"before {counted}. Best: {best}, {main.label} {main.shown(found.figure(best, found.main_metric))}"
    )
    if asked.choose_on:
        said += f", over all windows but the first {asked.choose_on}, on which weights were chosen"
    return f"{said}."


def parts(found: RollingEvaluation) -> str:
    """Chart and tables."""
    return chart(found) + _scorers(found) + _differences(found) + _slices(found)


def chart(found: RollingEvaluation) -> str:
    """The main metric window by window: models, memory, both, and the best other baseline."""
    main = found.metrics[found.main_metric]
    values = {name: found.by_window(name, found.main_metric) for name in _drawn(found)}
    high = 1.08 * max((v for each in values.values() for v in each if v is not None), default=0.0) or 1.0
    slots = len(found.windows)

    def place(window: int, value: float) -> tuple[float, float]:
        return 100 * (window + 0.5) / slots, 100 * (high - value) / high

    lines, dots, legend = [], [], []
    for name, each in values.items():
        kind = f"{_COLOURS[found.kinds[name]]} {name.partition(' ')[0]}"
        known = [(window, value) for window, value in enumerate(each) if value is not None]
        lines.append(path([place(*point) for point in known], kind))
        for window, value in known:
            left, top = place(window, value)
            tip = f"{name}, window {found.windows[window].number}: {main.shown(value)}"
            dots.append(
                f'<i class="dot {esc(kind)}" style="left:{left:.2f}%;top:{top:.2f}%" data-tip="{esc(tip)}"></i>'
            )
        legend.append(f'<li><i class="swatch {_COLOURS[found.kinds[name]]}"></i>{esc(name)}</li>')
    bands = "".join(
        f'<span class="band{" odd" if window.number < found.rolling.choose_on else ""}" '
        f'style="left:{100 * n / slots:.2f}%;width:{100 / slots:.2f}%"><b>{as_text(window.start)[:10]}</b></span>'
        for n, window in enumerate(found.windows)
    )
    ticks = "".join(
        f'<span class="tick" style="top:{place(0, tick)[1]:.2f}%"><b>{tick:.3f}</b></span>'
        for tick in nice_ticks(0.0, high, 5)
    )
    return (
        f'<ul class="legend">{"".join(legend)}</ul><div class="chart" tabindex="0" role="group" aria-label="'
        f'{esc(main.label)} per window. Arrow keys read the points."><div class="plot over-windows">{bands}{ticks}'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{"".join(lines)}</svg>'
        f"{''.join(dots)}</div></div>"
    )


def _drawn(found: RollingEvaluation) -> list[str]:
    others = [name for name, kind in found.kinds.items() if kind == "baseline"]
    best = max(others, key=lambda name: found.figure(name, found.main_metric) or 0.0, default="")
    return [name for name, kind in found.kinds.items() if kind != "baseline" or name == best]


def _scorers(found: RollingEvaluation) -> str:
    rows = []
    for name, kind in found.kinds.items():
        mark = f" <small>no better than {esc(found.best_baseline)}</small>"
        marked = esc(name) + (mark if found.beats_baselines(name) is False else "")
        figures = [info.shown(found.figure(name, metric)) for metric, info in found.metrics.items()]
        rows.append([marked, esc(kind), *figures])
    return _table(["", "", *(info.label for info in found.metrics.values())], rows)


def _differences(found: RollingEvaluation) -> str:
    info = found.metrics[found.main_metric]
    rows = [
        [
            f"{esc(each.second)} against {esc(each.first)}",
            f"{info.shown(each.values[0])} → {info.shown(each.values[1])}",
            "{:+.4f} to {:+.4f}".format(*each.interval).replace("-", "−"),
            p_value(each.p),
        ]
        for each in found.differences()
    ]
    return _table([f"difference in {info.label}", "", "95% interval, by user", ""], rows) if rows else ""


def _slices(found: RollingEvaluation) -> str:
    metric = "hr@10" if "hr@10" in found.metrics else found.main_metric
    info, names = found.metrics[metric], _drawn(found)
    rows = []
    groups = [
        (f"{capital(ROLLING_HEADINGS[heading])}: {label}", group)
        for heading, each in found.slices().items()
        for label, group in each.items()
    ]
    newcomers = found.without_history()
    if newcomers["targets"]:
        groups.append(("Users without history, who are in no other figure", newcomers))
        names = list(dict.fromkeys([*names, *newcomers["scorers"]]))
    for label, group in groups:
        cells = []
        for name in names:
            values = group["scorers"].get(name, {})
            bounds = values.get(f"{metric}_interval")
            interval = "" if bounds is None else f" <small>{bounds[0]:.3f}–{bounds[1]:.3f}</small>"
            cells.append(info.shown(values.get(metric)) + interval if metric in values else "–")
        rows.append([esc(label), f"{group['targets']:,}", *cells])
    head = [f"{info.label}, with 95% intervals", "targets", *names]
    return f"<details><summary>By slice</summary>{_table(head, rows)}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML, the head is text."""
    names = "".join(f'<th scope="col">{esc(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return (
        f"<div class='scroll'><table class='plain'><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )
