"""How commands open a run folder, and what recommends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmd4rec.inference.opening import IndexKind
    from llmd4rec.inference.recommender import Recommender
    from llmd4rec.runs.run import Run

TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Import the code that the run's settings name (package.module:Name), as you trust whoever made the run.",
    ),
]


def refuse_given(context: typer.Context, names: Sequence[str], why: str, remedy: str) -> None:
    """Refuses options that would be ignored.

    Args:
        context: of the command.
        names: of its parameters.
        why: what is said of the first of them that was given.
        remedy: what to do.

    Raises:
        ConfigError: one of them was given.
    """
    from llmd4rec.errors import ConfigError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--{name.replace('_', '-')} {why}", remedy)


def open_run(folder: Path, trust_code: bool) -> Run:
    """The run of a folder; with `trust_code`, modules that it names are looked for in the current directory too."""
    from llmd4rec.config.open_types import import_also_from
    from llmd4rec.runs.run import Run

    import_also_from(Path.cwd())
    return Run.open(folder, trust_code=trust_code)


def open_recommender(
    source: Path, stage: str, trust_code: bool, *, threads: int | None = None, index: IndexKind = "auto"
) -> Recommender:
    """The recommender of a run, an export or a hub id; with `trust_code` as in :func:`open_run`."""
    from llmd4rec.config.open_types import import_also_from
    from llmd4rec.inference.recommender import Recommender

    import_also_from(Path.cwd())
    return Recommender.load(source, stage, threads=threads, index=index, trust_code=trust_code)
