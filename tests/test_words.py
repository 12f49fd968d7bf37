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

#: What must not come back. Words that also mean something else are looked for in the phrases that gave them away.
GIVEN_UP = {
    "CRM": r"\bCRMs?\b",
    "an old setting": r"\b(lambda_(up|down)|temperature_(up|down)|crm_start|llm_start|continue_by|"
    r"taught_dropout|wides?: |crm\.\w+|training\.crm|init_table_from_crm|llm\.encoder|llm\.text_fields|"
    r"evaluation\.seen)\b",
    "an old stage": r"\b((crm|wide|llm)-alone|crm-round-\d|wide-alone-\d)\b",
    "an old option": r"--(model|seen) |--stage(-a|-b)? (alone|crm)\b",
    "alone for undistilled": r"\b(trained alone|(model|recommender|SASRec) alone|alone and distilled)\b",
    "wide models": r"\b(wide|wider) (CRM|ones?|models? that teach)\b",
    "heard": r"\b(is|are|was|were|not|models?) heard\b|listens? to (its|their|the|a) teachers?\b|Who listened",
    "consensus": r"\bconsensus\b",
    "published teachers": r"\b(published teachers?|publish(es|ing)? (a|the|its) teacher)\b",
    "popularity left out": r"leav\w+ out (some )?of the (items' )?popularity|popularity (is |to )?le(ft|ave) out",
    "sides": r"\b(items'|item's|with its|and its) sides\b|\bown rows?\b",
    "later day": r"\bLater day\b|\blater-day\b|\blater_day\b",
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
        for match in re.finditer(pattern, text):
            start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
            found.append(f"{name}: {text[start : end if end >= 0 else None].strip()[:160]}")
    return found


@pytest.mark.parametrize("command", list(commands()))
def test_help_speaks_the_fields_words(command: str) -> None:
    result = CliRunner().invoke(app, [*([command] if command else []), "--help"], env={"COLUMNS": "300"})
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


def test_the_search_finds_what_it_looks_for() -> None:
    assert wrong("the distilled CRM") != []
    assert wrong("set lambda_up to 2") != []
    assert wrong("a wider recommender teaches the model; 20 users were seen") == []
