"""Charts as HTML that a browser lays out: text keeps its size on a phone, and values stay selectable.

Lines are one stretched SVG path; everything else is boxes placed in percent. `data-tip` holds what the pointer or the
arrow keys bring up (see script.js); all strings that come from outside go through :func:`esc`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from llmd4rec.distillation.plan import Role
from llmd4rec.evaluation.significance import GroupComparison, Overlap
from llmd4rec.report.content import CurvePoint, WeightHistogram
from llmd4rec.report.words import percent

#: What is drawn over the epochs of stages before the first round.
NO_TEACHERS = "no teachers"


def esc(value: object) -> str:
    """`value` as text that is safe inside elements and quoted attributes."""
    return html.escape(str(value), quote=True)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within low..high, ascending."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def curves(points: Sequence[CurvePoint], names: Mapping[Role, str], metric: str) -> str:
    """A validation metric over all epochs, one line per stage, rounds side by side.

    Args:
        points: in the order of training, at least one, finite values.
        metric: what the values are of, for people.
        names: role → what the legend calls its models.
    """
    low, high = _visible_range(points)
    stages = [list(group) for _, group in groupby(points, key=lambda point: point.stage)]
    slots = sum(len(stage) + 0.6 for stage in stages)

    def y(value: float) -> float:
        return 100 * (high - value) / (high - low)

    lines, dots, bands, x = [], [], [], 0.0
    last_of: dict[Role, tuple[float, float]] = {}
    spans: dict[int, tuple[float, float]] = {}
    for stage in stages:
        role, number = stage[0].role, stage[0].round
        places = [(100 * (x + 0.8 + n) / slots, y(point.value)) for n, point in enumerate(stage)]
        begin = x
        x += len(stage) + 0.6
        spans[number] = (min(spans.get(number, (begin, x))[0], begin), x)
        if role in last_of and number > 0:  # a round goes on from, or is compared with, what was before
            lines.append(path([last_of[role], places[0]], f"{role} link"))
        lines.append(path(places, role))
        last_of[role] = places[-1]
        best = max(range(len(stage)), key=lambda n: stage[n].value)
        for n, (point, (left, top)) in enumerate(zip(stage, places, strict=True)):
            if top <= 100:
                tip = f"{point.stage}, epoch {point.epoch}: {point.value:.4f}"
                kind = f"dot {role}" + (" best" if n == best else "")
                dots.append(f'<i class="{kind}" style="left:{left:.2f}%;top:{top:.2f}%" data-tip="{esc(tip)}"></i>')
    for n, (number, (begin, end)) in enumerate(spans.items()):
        place = f"left:{100 * begin / slots:.2f}%;width:{100 * (end - begin) / slots:.2f}%"
        bands.append(f'<span class="band{" odd" if n % 2 else ""}" style="{place}"><b>{_round(number)}</b></span>')
    ticks = "".join(
        f'<span class="tick" style="top:{y(tick):.2f}%"><b>{tick:.3f}</b></span>' for tick in nice_ticks(low, high, 5)
    )
    legend = "".join(f'<li><i class="swatch {role}"></i>{esc(names[role])}</li>' for role in names if role in last_of)
    cut = any(point.value < low for point in points)
    note = f"<p class='note'>First epochs below {low:.3f} lie under the chart.</p>" if cut else ""
    return (
        f'<ul class="legend">{legend}<li><i class="swatch ring"></i>best epoch</li></ul>'
        f'<div class="chart" tabindex="0" role="group" aria-label="Validation {metric} per epoch. Arrow keys read the '
        f'points."><div class="plot">{"".join(bands)}{ticks}<svg viewBox="0 0 100 100" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(lines)}</svg>{"".join(dots)}</div></div>{note}{_curve_table(stages)}'
    )


def _round(number: int) -> str:
    return f"round {number}" if number else NO_TEACHERS


def _visible_range(points: Sequence[CurvePoint]) -> tuple[float, float]:
    """The values worth seeing: rounds are compared closely, so the climb from nothing is cut off when there are any."""
    high = max(point.value for point in points)
    low = 0.0
    if any(point.round > 0 for point in points):
        best: dict[str, float] = {}
        for point in points:
            if point.round == 0:
                best[point.stage] = max(point.value, best.get(point.stage, point.value))
        low = 0.94 * min([*best.values(), *(point.value for point in points if point.round > 0)])
    margin = 0.08 * (high - low) or 0.001
    return max(0.0, low - margin), high + margin


def path(places: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through places in percent, from the left and from the top."""
    steps = " L".join(f"{left:.2f} {top:.2f}" for left, top in places)
    return f'<path class="{esc(kind)}" d="M{steps}"/>'


def _curve_table(stages: Sequence[Sequence[CurvePoint]]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{esc(stage[0].stage)}</th><td>{_round(stage[0].round)}</td><td>{len(stage)}</td>"
        f"<td>{stage[0].value:.4f}</td><td>{max(point.value for point in stage):.4f}</td></tr>"
        for stage in stages
    )
    return (
        "<details><summary>The same as numbers</summary><div class='scroll'><table class='plain'><thead><tr><th>stage"
        f"</th><th>round</th><th>epochs</th><th>first</th><th>best</th></tr></thead><tbody>{rows}</tbody></table></div>"
        "</details>"
    )


def gains(sections: Mapping[str, Mapping[str, GroupComparison]], metric: str, lower_is_better: bool = False) -> str:
    """Relative gains with their intervals, one row per group of users, on one scale.

    Args:
        sections: heading → label → comparison.
        metric: which metric.
        lower_is_better: a fall is drawn as a gain.
    """
    found = [group.metrics[metric] for groups in sections.values() for group in groups.values()]
    ends = [end for d in found if d.relative is not None for end in (d.relative, *(d.relative_interval or ()))]
    largest = max((abs(d.relative) for d in found if d.relative is not None), default=0.0)
    # A small group's interval may reach anywhere; it must not flatten all others.
    low, high = (
        max(min(ends, default=0.0), -100.0, -2.5 * largest - 10),
        min(max(ends, default=0.0), 2.5 * largest + 10),
    )
    low, high = min(low, -2.0), max(high, 2.0)
    pad = 0.04 * (high - low)
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    ticks = nice_ticks(low, high, 6)
    grid = "".join(
        f'<s style="left:{place(tick):.2f}%"{" class=zero" if abs(tick) < 1e-9 else ""}></s>' for tick in ticks
    )
    axis = "".join(f'<span style="left:{place(tick):.2f}%">{_axis_label(tick)}</span>' for tick in ticks)
    body = []
    for heading, groups in sections.items():
        body.append(f'<tr class="heading"><th colspan="4" scope="rowgroup">{esc(heading)}</th></tr>')
        for label, group in groups.items():
            d = group.metrics[metric]
            track, gain = "", "–"
            if d.relative is not None:
                known = d.relative_interval is not None
                start, end = d.relative_interval or (d.relative, d.relative)
                up, down = ("down", "up") if lower_is_better else ("up", "down")
                kind = up if known and start > 0 else down if known and end < 0 else "open"
                cut = f"{' cut-left' if start < low else ''}{' cut-right' if end > high else ''}"
                width = place(end) - place(start)
                interval = (
                    f"95% interval {percent(start)} to {percent(end)}" if known else "too few hits for an interval"
                )
                tip = f"{label}: {percent(d.relative)}, {interval}, p = {d.p:.4f}"
                track = (
                    f'<i class="range {kind}{cut}" style="left:{place(start):.2f}%;width:{width:.2f}%"></i>'
                    f'<i class="point {kind}" style="left:{place(d.relative):.2f}%" data-tip="{esc(tip)}"></i>'
                )
                gain = percent(d.relative)
            body.append(
                f'<tr><th scope="row">{esc(label)}<small>{group.users:,} users</small></th>'
                f'<td class="num from">{d.first:.4f} → {d.second:.4f}</td><td class="num gain">{gain}</td>'
                f'<td class="track"><div>{grid}{track}</div></td></tr>'
            )
    return (
        '<table class="gains"><thead><tr><th scope="col">users</th><th scope="col">undistilled → distilled</th>'
        '<th scope="col">gain</th><th scope="col"><span class="sr">95% interval</span>'
        f'<div class="axis">{axis}</div></th></tr></thead><tbody>{"".join(body)}</tbody></table>'
    )


def _axis_label(tick: float) -> str:
    return f"{tick:+.0f}%".replace("-", "−") if abs(tick) > 1e-9 else "0%"


def weights(histograms: Sequence[WeightHistogram]) -> str:
    """One small histogram per stage with sample weights, rounds as rows."""
    cells = []
    for histogram in sorted(histograms, key=lambda each: each.round):
        total = sum(histogram.counts) or 1
        highest = max(histogram.counts, default=0) or 1
        first, last = histogram.edges[0], histogram.edges[-1]
        bars = []
        for count, left, right in zip(histogram.counts, histogram.edges, histogram.edges[1:], strict=False):
            tip = f"weight {left:.2g} to {right:.2g}: {100 * count / total:.1f}% of training positions"
            bars.append(f'<i style="height:{max(100 * count / highest, 0.5):.1f}%" data-tip="{esc(tip)}"></i>')
        mean = 100 * (histogram.mean - first) / ((last - first) or 1)
        cells.append(
            f'<figure class="hist {histogram.role}"><figcaption><b>{esc(histogram.stage)}</b>'
            f'<span>mean {histogram.mean:.2f}</span></figcaption><div class="bars" tabindex="0" role="group" '
            f'aria-label="Sample weights of {esc(histogram.stage)}. Arrow keys read the bars.">'
            f'{"".join(bars)}<b style="left:{mean:.1f}%"></b></div>'
            f"<div class='ends'><span>{first:g}</span><span>{(first + last) / 2:g}</span><span>{last:g}</span></div>"
            "</figure>"
        )
    return f'<div class="hists">{"".join(cells)}</div>'


def overlap(found: Overlap, first: str, second: str) -> str:
    """Who found the true item within 10, as one bar over all hits."""
    parts = [
        ("first", f"only {first}", found.only_first),
        ("both", "both", found.both),
        ("second", f"only {second}", found.only_second),
    ]
    hits = sum(count for _, _, count in parts) or 1
    bar = "".join(
        f'<i class="{kind}" style="flex-grow:{count}" '
        f'data-tip="{esc(label)}: {count:,} ({100 * count / hits:.0f}%)"></i>'
        for kind, label, count in parts
        if count
    )
    keys = "".join(
        f'<li><i class="swatch {kind}"></i>{esc(label)} <b>{count:,}</b> <small>{100 * count / hits:.0f}%</small></li>'
        for kind, label, count in parts
    )
    return (
        '<div class="stack" tabindex="0" role="group" aria-label="Overlap of hits at 10. Arrow keys read the parts.">'
        f'{bar}</div><ul class="legend">{keys}</ul>'
    )
