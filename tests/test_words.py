"""Public text speaks the field's words: no name that the project invented once and has given up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmd4rec.cli import app
from llmd4rec.config.settings import describe
from llmd4rec.distillation.settings import DistillationSettings

ROOT = Path(__file__).parent.parent

#: What must not come back. Words that also mean something else are looked for in the phrases that gave them away. A
#: space stands for any white space: pages are wrapped.
GIVEN_UP = {
    "CRM": r"\bCRMs?\b",
    "an old setting": r"\b(lambda_(up|down)|temperature_(up|down)|crm_start|llm_start|continue_by|taught_dropout|"
    r"crm\.\w+|training\.crm|init_table_from_crm|llm\.encoder|llm\.text_fields|evaluation\.seen)\b|"
    r"\b(crm|wides?): ?(null|default|[\d\[{])|(?m:^(crm|wides?|direction|consensus|weights|teacher_precision):)",
    "an old stage": r"\b((crm|wide|llm)-alone|crm-round-\d|wide-alone-\d)\b",
    "an old option": r"(?<!var\()--(model|seen)(?![\w:-])|--stage(-a|-b)? (alone|crm)\b",
    "alone for undistilled": r"\b(trained alone|(model|recommender|SASRec) alone|alone and distilled)\b",
    "wide models": r"\b(wide|wider) (CRM|ones?|models? that teach)\b",
    "heard": r"\b(is|are|was|were|not|models?) heard\b|listens? to (its|their|the|a) teachers?\b|Who listened",
    "consensus": r"\bconsensus\b",
    "published teachers": r"\b(published teachers?|publish(es|ing)? (a|the|its) teacher)\b",
    "popularity left out": r"leav\w+ out (some )?of the (items' )?popularity|popularity (is |to )?le(ft|ave) out",
    "sides": r"\b(items'|item's|with its|and its) sides\b|\bown rows?\b",
    "later day": r"\blater day\b(?! than)|\blater[-_]day\b",
    "the control": r"\bthe control\b(?! for)",
    "seen: keep or remove": r"\bseen: (keep|remove)\b|\"seen\": ?\"(keep|remove)\"",
    "old names in Python": r"\b(MutualDistillation|LLMRecommender)\b",
}

#: Where old names are explained, or where results that were made with them are told.
EXEMPT = {"docs/paper.md": {"CRM"}}


def commands() -> Iterator[str]:
    yield ""
    for command in app.registered_commands:
        yield command.name or ""
    for group in app.registered_groups:
        yield group.name or ""
        for command in group.typer_instance.registered_commands if group.typer_instance else ():
            yield f"{group.name} {command.name}"


def pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield ROOT / "CONTRIBUTING.md"
    yield ROOT / "SECURITY.md"
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield from sorted((ROOT / "examples").glob("*.*"))
    room = ROOT / "src" / "llmd4rec"
    yield from sorted((room / "server" / "explorer").glob("*.*"))
    yield from sorted((room / "report").glob("*.*"))
    yield from sorted((room / "inference").glob("card.py"))


def wrong(text: str, exempt: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """The lines that use a name that was given up, each with what is wrong."""
    found = []
    for name, pattern in GIVEN_UP.items():
        if name in exempt:
            continue
        for match in re.finditer(re.sub(r" (?!\?)", r"\\s+", pattern), text):
            start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
            found.append(f"{name}: {text[start : end if end >= 0 else None].strip()[:160]}")
    return found


@pytest.mark.parametrize("command", list(commands()))
def test_help_speaks_the_fields_words(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    assert wrong(result.output) == []


def test_settings_speak_the_fields_words() -> None:
    keys = [f"{key}: {description}" for key, _, description in describe(DistillationSettings)]
    assert wrong("\n".join(keys)) == []


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_speak_the_fields_words(page: Path) -> None:
    if page.name == "results.md":
        pytest.skip("made of result files, of which older ones have older names")
    assert wrong(page.read_text(encoding="utf-8"), EXEMPT.get(str(page.relative_to(ROOT)), set())) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CRM", "the distilled CRM"),
        ("an old setting", "set lambda_up to 2"),
        ("an old setting", "rounds: 2\nwides: [{dim: 256}]"),
        ("an old setting", "with `wide: null` there is none"),
        ("an old setting", "teacher_precision: int8"),
        ("an old setting", "--set crm.dim=32"),
        ("an old stage", "checkpoints/crm-alone/best.safetensors, then wide-alone-2"),
        ("an old option", "llmd4rec evaluate RUN --model llm"),
        ("an old option", "give `--seen`"),
        ("an old option", "--stage-a alone"),
        ("alone for undistilled", "the SASRec alone"),
        ("wide models", "learns from the wider models that\nteach"),
        ("heard", "a teacher that is not heard"),
        ("consensus", "the consensus of all"),
        ("published teachers", "a published teacher"),
        ("popularity left out", "it leaves out some of the items' popularity"),
        ("sides", "an item's sides"),
        ("later day", "NDCG on the later day; later_day"),
        ("the control", "better than the control by 2%"),
        ("seen: keep or remove", "seen: keep"),
        ("old names in Python", "MutualDistillation(...)"),
    ],
)
def test_the_search_finds_what_it_looks_for(name: str, text: str) -> None:
    assert wrong(text) != []
    assert wrong(text, {name}) == []


def test_every_search_is_tried() -> None:
    (tried,) = (mark.args[1] for mark in test_the_search_finds_what_it_looks_for.pytestmark)  # type: ignore[attr-defined]
    assert {name for name, _ in tried} == GIVEN_UP.keys()


@pytest.mark.parametrize(
    "text",
    [
        "a wider recommender teaches the model; 20 users were seen",
        "distill:\n  teacher_precision: int8\n  students: [model]",
        "distill.teacher_precision: of what a teacher's scores are computed from",
        "serve exports/first --models exports, or --no-filter-seen",
        "the true item came on a later day than the item before it",
        "ensemble.weights: validation",
    ],
)
def test_the_fields_own_words_pass(text: str) -> None:
    assert wrong(text) == []
