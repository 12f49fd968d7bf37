"""The parts of a report, each from what it shows to HTML; an empty string where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from llmd4rec.evaluation.significance import Comparison, Difference, GroupComparison
from llmd4rec.evaluation.slices import SLICE_NAMES
from llmd4rec.report import charts
from llmd4rec.report.charts import esc, percent
from llmd4rec.report.content import Example, ModelName, ModelRow, ReportContent

#: The metric a report leads with, if it was measured.
LEAD = "ndcg@10"
#: A space at which no line breaks.
NBSP = "\u00a0"
#: Below this p value a difference is called one.
LEVEL = 0.05
#: Items of a history that are shown; longer ones say how many came before.
HISTORY_SHOWN = 8


def metric_name(name: str) -> str:
    """`ndcg@10` → `NDCG@10`."""
    return name.upper()


def p_value(p: float) -> str:
    """`p < 0.001` or `p = 0.02`, with as many digits as mean something."""
    if p < 0.001:
        return f"p{NBSP}<{NBSP}0.001"
    return f"p{NBSP}={NBSP}{p:.3f}" if p < 0.1 else f"p{NBSP}={NBSP}{p:.2f}"


def lead_metric(content: ReportContent) -> str:
    """`ndcg@10`, or NDCG at the first cutoff that was measured."""
    measured = [list(row.metrics) for row in content.rows]
    if content.comparison is not None:
        measured.insert(0, list(content.comparison.overall.metrics))
    names = [name for metrics in measured for name in metrics if name.startswith("ndcg@")]
    return LEAD if LEAD in names or not names else names[0]


def finding(content: ReportContent) -> str:
    """The report's first sentence, as text: what distillation did to the lead metric, or how good the model is."""
    lead = lead_metric(content)
    if content.comparison is not None:
        d = content.comparison.overall.metrics[lead]
        gain = p_value(d.p) if d.relative is None else f"{percent(d.relative)}, {p_value(d.p)}"
        if d.p < LEVEL and d.difference > 0:
            return f"Distillation lifted {metric_name(lead)} from {d.first:.4f} to {d.second:.4f} ({gain})."
        if d.p < LEVEL and d.difference < 0:
            return f"Distillation lowered {metric_name(lead)} from {d.first:.4f} to {d.second:.4f} ({gain})."
        return (
            f"Distillation did not measurably change {metric_name(lead)}: {d.first:.4f} before, {d.second:.4f} after "
            f"({gain})."
        )
    for row in content.rows:
        if lead in row.metrics:
            name = _model_name(content, row.model)
            what = "trained alone" if row.stage == "alone" else "after distillation"
            return f"{_capital(name)} {what} reaches {metric_name(lead)} {row.metrics[lead]:.4f}."
    return "This run has not been evaluated yet."


def _model_name(content: ReportContent, model: ModelName) -> str:
    return {"crm": content.crm, "llm": content.llm, "wide": f"wider {content.wide or content.crm}"}[model]


def opening(content: ReportContent) -> str:
    """The finding, how it was measured, and the four figures to remember."""
    comparison, lead = content.comparison, lead_metric(content)
    how = ""
    tiles: list[str] = []
    if comparison is not None:
        seen = "items already seen are removed" if comparison.filter_seen else "items already seen stay candidates"
        target = "last item" if comparison.split == "test" else "validation item"
        how = (
            f"<p>For each of {comparison.overall.users:,} users, the {target} was hidden and ranked among the whole "
            f"catalogue ({seen}; ties count against the model). Both models are the same {esc(content.crm)}, trained "
            f"alone and taught by {esc(content.teacher)}."
        )
        later = comparison.slices.get("next_day")
        if later is not None:
            how += " " + _later_day(later, comparison, lead)
        how += "</p>"
        tiles += [_metric_tile(name, comparison.overall.metrics[name]) for name in (lead, _hit_rate(lead))]
        hit = comparison.overlap
        net = hit.only_second - hit.only_first
        tiles.append(
            _tile(
                "Users gained, net",
                f"{net:+,}".replace("-", "−"),
                f"true item among the first 10: {hit.only_second:,} gained, {hit.only_first:,} lost",
            )
        )
    tiles.extend(_cost_tile(content))
    figures = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    return (
        f'<header class="opening"><p class="eyebrow">llmd4rec report · {esc(content.title)}</p>'
        f"<h1>{esc(finding(content))}</h1>{how}</header>{figures}"
    )


def before_and_after(content: ReportContent) -> str:
    """All models in one table, with what they cost."""
    if not content.rows:
        return ""
    lead = lead_metric(content)
    best = max(row.metrics.get(lead, 0.0) for row in content.rows) or 1.0
    columns: list[tuple[str, Callable[[ModelRow], str]]] = [
        (metric_name(_hit_rate(lead)), lambda row: _figure(row.metrics.get(_hit_rate(lead)))),
        (metric_name(lead), lambda row: _bar_figure(row.metrics.get(lead), best)),
        ("catalogue shown", lambda row: _share(row.metrics.get("coverage@10"))),
        ("parameters", lambda row: _count(row.parameters)),
        ("training, total", lambda row: _duration(row.train_seconds)),
        ("per request", lambda row: "" if row.ms_per_request is None else f"{row.ms_per_request:.3g} ms"),
    ]
    columns = [(name, show) for name, show in columns if any(show(row) for row in content.rows)]
    head = "".join(f'<th scope="col">{name}</th>' for name, _ in columns)
    body = []
    for row in content.rows:
        name = _model_name(content, row.model)
        stage = "trained alone" if row.stage == "alone" else "distilled"
        cells = "".join(f'<td class="num" data-name="{column}">{show(row) or "–"}</td>' for column, show in columns)
        body.append(
            f'<tr class="{esc(row.model)} {esc(row.stage)}"><th scope="row"><i class="swatch {esc(row.model)}"></i>'
            f"{esc(_capital(name))}<small>{stage}</small></th>{cells}</tr>"
        )
    distilled = any(row.stage == "distilled" for row in content.rows)
    return _section(
        "before-after",
        "Before and after" if distilled else "What it scores and what it costs",
        "The distilled recommender is served exactly like the one trained alone: same architecture, same parameters."
        if distilled
        else "",
        f'<table class="models"><thead><tr><th scope="col">model</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
    )


def learning(content: ReportContent) -> str:
    """Validation curves."""
    points = [point for point in content.curves if math.isfinite(point.value)]
    if not points:
        return ""
    names = {model: _capital(_model_name(content, model)) for model in get_args(ModelName)}
    if len({point.name for point in points if point.model == "wide"}) > 1:
        names["wide"] = "Wider recommenders"
    title, lead = "What was learned, epoch by epoch", "NDCG@10 on the validation items after each epoch."
    if any(point.round for point in points):
        title = "What was learned, round by round"
        if {"llm", "crm"} <= {point.model for point in points if point.round}:
            lead += " Within a round the language model is taught first, then the recommender."
    return _section("learning", title, lead, charts.curves(points, names))


def origins(content: ReportContent) -> str:
    """Where the gain comes from: slices and buckets."""
    comparison = content.comparison
    if comparison is None:
        return ""
    lead = lead_metric(content)
    slices = {
        _capital(SLICE_NAMES.get(name, name)): group
        for name, group in comparison.slices.items()
        if name not in ("short_history", "long_history")  # the buckets below tell the same in more detail
    }
    sections: dict[str, Mapping[str, GroupComparison]] = {"Overall": {"All users": comparison.overall}}
    if slices:
        sections["Slices"] = slices
    if len(comparison.history_length) > 1:
        sections["By length of history"] = {_items(k): group for k, group in comparison.history_length.items()}
    if len(comparison.popularity) > 1:
        sections["By popularity of the true item"] = {
            f"{label} training interactions": group for label, group in comparison.popularity.items()
        }
    return _section(
        "origins",
        "Where the gain comes from",
        f"Relative change of {metric_name(lead)} with its 95% bootstrap interval. Filled marks: the interval excludes "
        "zero. Of many groups a few do so by chance alone.",
        charts.gains(sections, lead),
    )


def listening(content: ReportContent) -> str:
    """Sample weights."""
    if not content.weights:
        return ""
    return _section(
        "weights",
        "Who listened to whom",
        "Each training sample has a weight between 0 (ignore the teacher) and 2 (listen twice as hard), from how well "
        "teachers and student rank its true item. <var>w1</var>: the language model is taught. <var>w2</var>: the "
        "recommender is. The line marks the mean.",
        charts.weights(content.weights),
    )


def different_hits(content: ReportContent) -> str:
    """Overlap of the two models' hits."""
    comparison = content.models_compared
    if comparison is None:
        return ""
    found = comparison.overlap
    hits = found.both + found.only_first + found.only_second
    agree = f" They agree on {100 * found.both / hits:.0f}% of these users." if hits else ""
    return _section(
        "overlap",
        "Two models, different hits",
        f"Of {comparison.overall.users:,} users, {hits:,} had their true item among the first 10 of "
        f"{esc(comparison.first)} or {esc(comparison.second)}.{agree} What only one of them finds is what there is to "
        "teach.",
        charts.overlap(found, comparison.first, comparison.second),
    )


def histories(content: ReportContent) -> str:
    """Real users: history, lists before and after, the true item marked."""
    if not content.examples:
        return ""
    cards = "".join(_card(example) for example in content.examples)
    return _section(
        "histories",
        "Real histories",
        "Users drawn at random in turns: found only after distillation, found only before, found by both, found by "
        "neither. The true next item is marked.",
        f'<div class="cards">{cards}</div>',
    )


def background(content: ReportContent) -> str:
    """Facts about the data, settings, environment, and how to read the figures."""
    facts = _pairs(content.facts)
    commands = "\n".join(content.commands)
    folded = [
        ("How to read the figures", HOW_TO_READ),
        ("Settings", f"<pre tabindex='0'>{esc(content.settings)}</pre>" if content.settings.strip() else ""),
        ("Environment", _pairs(content.environment)),
        ("Commands", f"<pre tabindex='0'>{esc(commands)}</pre>" if commands.strip() else ""),
    ]
    blocks = "".join(f"<details><summary>{name}</summary>{inside}</details>" for name, inside in folded if inside)
    return _section("background", "Data, settings, environment", "", facts + blocks)


HOW_TO_READ = """<dl>
<dt>HR@10</dt><dd>The share of users whose true next item is among the first 10 recommendations.</dd>
<dt>NDCG@10</dt><dd>Like HR@10, but a hit counts 1 at the first place, 0.63 at the second, 0.29 at the tenth.</dd>
<dt>95% interval</dt><dd>Users are drawn again with replacement 2,000 times; 95% of the resulting gains lie in it.</dd>
<dt>p</dt><dd>How often a gain this large appears if, for each user, chance decides which result belongs to which model
(paired sign-flip test, two-sided).</dd>
<dt>Catalogue shown</dt><dd>The share of all items that appear among anyone's first 10.</dd>
<dt>Tail</dt><dd>The 80% of items with the fewest training interactions.</dd>
<dt>Later day</dt><dd>Logs that record only the day leave the order within a day open; users whose true item came on a
later day than the item before it are free of that doubt.</dd>
</dl>"""


def _section(name: str, title: str, lead: str, inside: str) -> str:
    intro = f"<p>{lead}</p>" if lead else ""
    head = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{head}{intro}{inside}</section>'


def _hit_rate(lead: str) -> str:
    return lead.replace("ndcg@", "hr@")


def _later_day(later: GroupComparison, comparison: Comparison, lead: str) -> str:
    d = later.metrics[lead]
    gain = "" if d.relative is None else f" ({percent(d.relative)}, {p_value(d.p)})"
    share = 100 * later.users / comparison.overall.users
    return (
        f"For the {share:.0f}% of users whose true item came on a strictly later day, where the order is beyond doubt, "
        f"it went from {d.first:.4f} to {d.second:.4f}{gain}."
    )


def _tile(name: str, value: str, note: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><h3>{name}</h3><p class="value">{value}</p><p>{note}</p></div>'


def _metric_tile(name: str, d: Difference) -> str:
    if d.relative is None:
        return _tile(metric_name(name), f"{d.second:.4f}", f"before: {d.first:.4f}")
    kind = "up" if d.p < LEVEL and d.difference > 0 else "down" if d.p < LEVEL and d.difference < 0 else ""
    interval = ""
    if d.relative_interval is not None:
        interval = f"<br>95% interval {percent(d.relative_interval[0])} to {percent(d.relative_interval[1])}"
    note = f"{d.first:.4f} → {d.second:.4f}{interval}"
    return _tile(metric_name(name), percent(d.relative), note, kind)


def _cost_tile(content: ReportContent) -> list[str]:
    row = next((row for row in reversed(content.rows) if row.model == "crm"), None)
    if row is None or (row.parameters is None and row.ms_per_request is None):
        return []
    added = ", none added by distillation" if row.stage == "distilled" else ""
    if row.ms_per_request is None:
        return [_tile("To serve", _count(row.parameters), f"parameters{added}")]
    parameters = "" if row.parameters is None else f", {_count(row.parameters)} parameters{added}"
    return [_tile("To serve", f"{row.ms_per_request:.3g} ms", f"per request{parameters}")]


def _card(example: Example) -> str:
    before, after = example.target_before is not None, example.target_after is not None
    kinds = {
        (False, True): ("won", "found after distillation"),
        (True, False): ("lost", "lost by distillation"),
        (True, True): ("both", "found by both"),
        (False, False): ("none", "found by neither"),
    }
    kind, verdict = kinds[before, after]
    hidden = max(0, len(example.history) - HISTORY_SHOWN)
    earlier = f'<li class="more">{hidden} earlier</li>' if hidden else ""
    history = "".join(f'<li title="{esc(t)}">{esc(t)}</li>' for t in example.history[-HISTORY_SHOWN:])
    lists = _list("Before", example.before, example.target_before, example.rank_before)
    lists += _list("After", example.after, example.target_after, example.rank_after)
    return (
        f'<article class="card"><header><h3>{esc(example.user)}</h3><span class="verdict {kind}">{verdict}</span>'
        f'</header><ol class="history" aria-label="history, oldest first">{earlier}{history}</ol>'
        f'<p class="true"><span>then came</span> <b>{esc(example.target)}</b></p><div class="lists">{lists}</div>'
        "</article>"
    )


def _list(name: str, titles: Sequence[str], target: int | None, rank: int | None) -> str:
    rows = "".join(
        f'<li class="hit" title="{esc(title)}"><b>{esc(title)}</b><span class="sr"> (the true item)</span></li>'
        if place == target
        else f'<li title="{esc(title)}">{esc(title)}</li>'
        for place, title in enumerate(titles)
    )
    where = "already in the history" if rank is None else f"true item at place {rank:,}"
    return f"<div><h4>{name}<small>{where}</small></h4><ol>{rows}</ol></div>"


def _pairs(values: Mapping[str, object]) -> str:
    rows = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{f'{value:,}' if isinstance(value, int) else esc(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _items(label: str) -> str:
    return f"{label} item" if label == "1" else f"{label} items"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bar_figure(value: float | None, best: float) -> str:
    return "" if value is None else f'{value:.4f}<i class="bar" style="width:{100 * value / best:.1f}%"></i>'


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _count(value: int | None) -> str:
    if value is None:
        return ""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"
