"""The parts of a report, each from what it shows to HTML; an empty string where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llmd4rec.distillation.plan import Role
from llmd4rec.distillation.stage_ids import BESIDE_MEMORY, MEMORY, without_memory
from llmd4rec.evaluation.evaluation import MetricInfo, main_metrics
from llmd4rec.evaluation.significance import Comparison, Difference, GroupComparison
from llmd4rec.evaluation.slices import SLICE_NAMES
from llmd4rec.report import charts, rolling, tables
from llmd4rec.report.charts import esc
from llmd4rec.report.content import Example, ReportContent
from llmd4rec.report.words import capital, count, ensemble, enumeration, items, p_value, percent

#: The metric a report leads with, if it was measured.
LEAD = "ndcg@10"
#: Below this p value a difference is called one.
LEVEL = 0.05
#: Metrics beside the lead that have a tile.
MORE_TILES = 3
#: Items of a history that are shown; longer ones say how many came before.
HISTORY_SHOWN = 8


def lead_metric(content: ReportContent) -> str:
    """`ndcg@10`, or NDCG at the first cutoff that was measured, or the first metric."""
    measured = [list(row.metrics) for row in content.rows]
    if content.comparison is not None:
        measured.insert(0, list(content.comparison.overall.metrics))
    names = [name for metrics in measured for name in metrics]
    of_ndcg = [name for name in names if name.startswith("ndcg@")]
    return LEAD if LEAD in names or not names else (of_ndcg or names)[0]


def finding(content: ReportContent) -> str:
    """The report's first sentence, as text: what distillation did to the lead metric, or how good the model is."""
    lead = lead_metric(content)
    info = content.info(lead)
    if content.comparison is not None:
        d = content.comparison.overall.metrics[lead]
        first, second = info.shown(d.first), info.shown(d.second)
        gain = p_value(d.p) if d.relative is None else f"{percent(d.relative)}, {p_value(d.p)}"
        if d.p < LEVEL and d.difference > 0:
            return f"Distillation lifted {info.label} from {first} to {second} ({gain})."
        if d.p < LEVEL and d.difference < 0:
            return f"Distillation lowered {info.label} from {first} to {second} ({gain})."
        return f"Distillation did not measurably change {info.label}: {first} undistilled, {second} distilled ({gain})."
    # The served model where it was evaluated, else the first one that was.
    for row in sorted(content.rows, key=lambda row: not row.served):
        if lead in row.metrics:
            return f"{capital(row.network)} ({row.stage}) reaches {info.label} {info.shown(row.metrics[lead])}."
    if content.facts.get("held out") == "nothing":
        return "Every row was trained on, so that nothing is held out to evaluate it on."
    return "This run has not been evaluated yet."


def opening(content: ReportContent) -> str:
    """The finding, how it was measured, and the four figures to remember."""
    comparison, lead = content.comparison, lead_metric(content)
    how = ""
    tiles: list[str] = []
    if comparison is not None:
        seen = "filtered" if comparison.filter_seen else "kept"
        target = "test item" if comparison.split == "test" else "validation item"  # the last one, or behind a moment
        how = (
            f"<p>For each of {comparison.overall.users:,} users, the {target} was hidden and ranked among the whole "
            f"catalogue (seen items {seen}; ties count against the model)."
        )
        next_day = comparison.slices.get("next_day")
        if next_day is not None and lead in next_day.metrics:
            how += " " + _next_day(next_day, comparison, lead, content.info(lead))
        how += (
            f"</p><p>Undistilled and distilled model are the same {esc(content.model or 'network')}. "
            f"{esc(_taught(content))}"
        )
        how += esc(f" {_memory(content)}".rstrip())
        if any(row.served and row.stage == content.undistilled for row in content.rows):
            how += " On the validation items the undistilled model is better, so it is the one that is served."
        how += "</p>"
        measured = comparison.overall.metrics
        others = [name for name in main_metrics(measured) if name != lead]
        tiles += [_metric_tile(content.info(name), measured[name]) for name in (lead, *others[:MORE_TILES])]
        hit = comparison.overlap
        net = hit.only_second - hit.only_first
        tiles.append(
            _tile(
                "Users gained, net",
                f"{net:+,}".replace("-", "−"),
                f"true item among the first 10: {hit.only_second:,} gained, {hit.only_first:,} lost",
            )
        )
    elif beside := _memory(content):
        how = f"<p>{esc(beside)}</p>"
    tiles.extend(_cost_tile(content))
    figures = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    return (
        f'<header class="opening"><p class="eyebrow">llmd4rec report · {esc(content.title)}</p>'
        f"<h1>{esc(finding(content))}</h1>{how}</header>{figures}"
    )


def _taught(content: ReportContent) -> str:
    """Who taught the distilled model, as text."""
    row = next((row for row in content.plan if row.stage == content.distilled), None)
    if row is not None and not row.teachers:
        return "Both learned only from the log: this run is a control, and the second one has no teachers."
    said = "The undistilled one learned only from the log, the distilled one also from its teachers."
    if row is None:
        return said

    def name(stage: str) -> str:
        network = content.network_of(stage)
        return f"{stage} [{network}]" if network else stage

    single = sum(weight != 0 for weight in row.teachers.values()) == 1
    said += f" {'Teacher' if single else 'Teachers, with their ensemble weights'}: {ensemble(row.teachers, name)}."
    return said + (f" Logit adjustment: τ = {row.logit_adjustment:g}." if row.logit_adjustment else "")


def _memory(content: ReportContent) -> str:
    """What the served model reaches with the memory beside it, and the memory alone; empty where there is none."""
    lead = lead_metric(content)
    rows = {row.stage: row for row in content.rows if lead in row.metrics}
    served = next((row for row in rows.values() if row.served and without_memory(row.stage)[1]), None)
    alone = rows.get(MEMORY)
    if alone is None:
        return ""
    info = content.info(lead)
    reached = f"The memory alone, which needs no training, reaches {info.shown(alone.metrics[lead])}."
    if served is None:
        return f"{reached} Validation does not want it beside the model."
    other = without_memory(served.stage)[0] == BESIDE_MEMORY
    beside = f"a third model, {BESIDE_MEMORY}, which was taught with it" if other else "the model"
    return f"{reached} It is served beside {beside}: together they reach {info.shown(served.metrics[lead])}."


def results(content: ReportContent) -> str:
    """All models in one table, with what they cost."""
    if not content.rows:
        return ""
    distilled = any(row.round and row.role == "model" for row in content.rows)
    about = "The distilled model costs as much to serve as the undistilled one: same network, same parameters."
    below = "“Below the best baseline” marks models that do not beat the best method without training."
    marked = any(row.below_baseline for row in content.rows)
    return _section(
        "results",
        "What the models score and cost",
        " ".join([*([about] if distilled else []), *([below] if marked else [])]),
        tables.results(content, lead_metric(content)),
    )


def learning(content: ReportContent) -> str:
    """Validation curves."""
    points = [point for point in content.curves if math.isfinite(point.value)]
    if not points:
        return ""
    networks = dict.fromkeys(content.network_of(point.stage) for point in points if point.role == "teacher")
    teachers = enumeration([network for network in networks if network])
    named: tuple[tuple[Role, str, str], ...] = (
        ("model", "Model", content.model),
        ("teacher", "Teachers", teachers),
        ("llm", "Language model", content.llm),
    )
    names = {role: f"{what}: {network}" if network else what for role, what, network in named}
    title, lead = "Validation, epoch by epoch", f"{content.selection} on the validation items after each epoch."
    if last := sorted({row.newest_days for row in content.plan if row.newest_days}):
        days = enumeration([f"{days:g}" for days in last])
        lead = (
            f"{content.selection} after each epoch, before the newest {days} days are learned, on the targets that the "
            "best epoch is chosen by: the first of these days, or the validation items."
        )
    if any(point.round for point in points):
        title = "Validation, round by round"
        if {"llm", "model"} <= {point.role for point in points if point.round}:
            lead += " Within a round the language model is taught first, then the model."
    if any(point.stage == BESIDE_MEMORY for point in points):
        lead += f" That of {BESIDE_MEMORY} is of the model and the memory together."
    return _section("learning", title, lead, charts.curves(points, names, content.selection))


def plan(content: ReportContent) -> str:
    """Who taught whom, and how long each training took."""
    if not content.plan:
        return ""
    lead = "One row per training, in order."
    if any(len(row.teachers) > 1 for row in content.plan):
        lead += (
            " Percentages are ensemble weights: each teacher's share of the mean of scores that the student learns. A "
            "teacher with weight 0 is unused."
        )
    if content.stopped_because and any(row.epochs is None for row in content.plan):
        lead += f" Why there are no more rounds: {esc(content.stopped_because)}."
    return _section("plan", "Who taught whom", lead, tables.plan(content))


def origins(content: ReportContent) -> str:
    """Where the gain comes from: slices and buckets."""
    comparison = content.comparison
    if comparison is None:
        return ""
    lead = lead_metric(content)
    info = content.info(lead)
    slices = {
        capital(SLICE_NAMES.get(name, name)): group
        for name, group in comparison.slices.items()
        if name not in ("short_history", "long_history")  # the buckets below tell the same in more detail
    }
    sections: dict[str, Mapping[str, GroupComparison]] = {"Overall": {"All users": comparison.overall}}
    if slices:
        sections["Slices"] = slices
    if len(comparison.history_length) > 1:
        sections["By length of history"] = {items(k): group for k, group in comparison.history_length.items()}
    if len(comparison.popularity) > 1:
        sections["By popularity of the true item"] = {
            f"{label} training interactions": group for label, group in comparison.popularity.items()
        }
    sections = {
        heading: {label: group for label, group in groups.items() if lead in group.metrics}
        for heading, groups in sections.items()
    }
    return _section(
        "origins",
        "Where the gain comes from",
        f"Relative change of {esc(info.label)} with its 95% bootstrap interval. Filled marks: the interval excludes "
        "zero. Of many groups a few do so by chance.",
        charts.gains(sections, lead, lower_is_better=info.higher_is_better is False),
    )


def sample_weights(content: ReportContent) -> str:
    """How sample weights were spread."""
    if not content.weights:
        return ""
    return _section(
        "weights",
        "Sample weights",
        "Each training position weighs its distillation term by a number between 0 and 2: above 1 where the teachers "
        "rank the true item better than the student, below 1 where the student ranks it better. The line marks the "
        "mean.",
        charts.weights(content.weights),
    )


def different_hits(content: ReportContent) -> str:
    """Overlap of the hits of model and language model."""
    comparison = content.llm_comparison
    if comparison is None:
        return ""
    found = comparison.overlap
    hits = found.both + found.only_first + found.only_second
    agree = f" They agree on {100 * found.both / hits:.0f}% of these users." if hits else ""
    return _section(
        "overlap",
        "Model and language model find different items",
        f"Of {comparison.overall.users:,} users, {hits:,} had their true item among the first 10 of "
        f"{esc(comparison.first)} or {esc(comparison.second)}.{agree} What only one of them finds, the "
        "other can still learn.",
        charts.overlap(found, comparison.first, comparison.second),
    )


def time_passes(content: ReportContent) -> str:
    """What was found in windows behind the cut."""
    return "".join(
        _section(
            "rolling" if not number else f"rolling-{number}",
            "Where time passes",
            esc(rolling.finding(found)),
            rolling.parts(found),
        )
        for number, found in enumerate(content.rolling)
    )


def histories(content: ReportContent) -> str:
    """Real users: history, what both models recommend, the true item marked."""
    if not content.examples:
        return ""
    cards = "".join(_card(example) for example in content.examples)
    return _section(
        "histories",
        "Real histories",
        "Users drawn at random, in turns: the true item is among the first 10 of the distilled model only, of the "
        "undistilled model only, of both, of neither. It is marked.",
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
<dt>Next-day targets</dt><dd>The true items that came on a later day than the item before them. Logs that record only
the day leave the order within a day open; here the order is certain.</dd>
<dt>Undistilled, distilled</dt><dd>The same network, trained only on the log, and trained on the log and on what its
teachers predict. The served one is the better of the two on the validation items.</dd>
<dt>beside-memory</dt><dd>The same network, taught with the memory's scores added to its own. It learns what the memory
does not say, and is served together with the memory only.</dd>
<dt>Ensemble weight</dt><dd>The share of one teacher in the mean of scores that a student learns. The weights are chosen
on the validation items, or all equal (<code>ensemble.weights</code>). A teacher with weight 0 is unused.</dd>
<dt>Logit adjustment τ</dt><dd>While the model is taught, τ · log(1 + training count) is added to an item's score. It is
not added when the model serves, which favours rare items.</dd>
</dl>"""


def _section(name: str, title: str, lead: str, inside: str) -> str:
    intro = f"<p>{lead}</p>" if lead else ""
    head = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{head}{intro}{inside}</section>'


def _next_day(group: GroupComparison, comparison: Comparison, lead: str, info: MetricInfo) -> str:
    d = group.metrics[lead]
    gain = "" if d.relative is None else f" ({percent(d.relative)}, {p_value(d.p)})"
    share = 100 * group.users / comparison.overall.users
    return (
        f"On next-day targets ({share:.0f}% of users: the true item came on a later day than the item before it) "
        f"{esc(info.label)} went from {info.shown(d.first)} to {info.shown(d.second)}{gain}."
    )


def _tile(name: str, value: str, note: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><h3>{name}</h3><p class="value">{value}</p><p>{note}</p></div>'


def _metric_tile(info: MetricInfo, d: Difference) -> str:
    name, first, second = esc(info.label), info.shown(d.first), info.shown(d.second)
    if d.relative is None:
        return _tile(name, second, f"undistilled: {first}")
    gain = 0.0 if info.higher_is_better is None else d.difference if info.higher_is_better else -d.difference
    kind = "up" if d.p < LEVEL and gain > 0 else "down" if d.p < LEVEL and gain < 0 else ""
    interval = ""
    if d.relative_interval is not None:
        interval = f"<br>95% interval {percent(d.relative_interval[0])} to {percent(d.relative_interval[1])}"
    note = f"{first} → {second}{interval}"
    return _tile(name, percent(d.relative), note, kind)


def _cost_tile(content: ReportContent) -> list[str]:
    models = [row for row in content.rows if row.role == "model"]
    row = next((row for row in models if row.served), models[-1] if models else None)
    if row is None or (row.parameters is None and row.ms_per_request is None):
        return []
    added = ", none added by distillation" if row.round else ""
    if row.ms_per_request is None:
        return [_tile("To serve", count(row.parameters), f"parameters{added}")]
    parameters = "" if row.parameters is None else f", {count(row.parameters)} parameters{added}"
    return [_tile("To serve", f"{row.ms_per_request:.3g} ms", f"per request{parameters}")]


def _card(example: Example) -> str:
    kinds = {
        (False, True): ("won", "found by the distilled model only"),
        (True, False): ("lost", "found by the undistilled model only"),
        (True, True): ("both", "found by both"),
        (False, False): ("none", "found by neither"),
    }
    kind, verdict = kinds[example.target_undistilled is not None, example.target_distilled is not None]
    hidden = max(0, len(example.history) - HISTORY_SHOWN)
    earlier = f'<li class="more">{hidden} earlier</li>' if hidden else ""
    history = "".join(f'<li title="{esc(t)}">{esc(t)}</li>' for t in example.history[-HISTORY_SHOWN:])
    lists = _list("Undistilled", example.undistilled, example.target_undistilled, example.rank_undistilled)
    lists += _list("Distilled", example.distilled, example.target_distilled, example.rank_distilled)
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
