"""`llmd4rec export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmd4rec.cli.evaluate import Stage


def export(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write [default: RUN/export].")] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Before or after distillation [default: the better on validation].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The run's data set, if it is not where it was.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
) -> None:
    """Write the served CRM as a self-contained folder: ONNX graph, item table, catalogue, checksums, model card.

    The exported graph is run and compared with the trained model before anything is kept.

    Example:

      llmd4rec export runs/first --out exports/first
    """
    from llmd4rec.distill.run import Run
    from llmd4rec.serving.export import export_run

    opened = Run.open(run)
    folder = out or opened.folder / "export"
    summary = export_run(
        opened,
        opened.load_data(data),
        folder,
        stage or opened.served_stage("crm"),
        overwrite=overwrite,
    )
    typer.echo(f"{folder}: {summary}")
