"""`llmd4rec export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmd4rec.cli.opening import TrustCode, open_run
from llmd4rec.errors import ConfigError

Table = Literal["float32", "int8"]
MemoryOption = Literal["auto", "on", "off"]


def export(
    run: Annotated[Path, typer.Argument(help="Run folder made by `llmd4rec train`.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write \\[default: RUN/export].")] = None,
    stage: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Which trained model, no language model: undistilled, teacher-1, distilled-round-1, distilled (last "
            "round), beside-memory (with the memory only) or served.",
        ),
    ] = "served",
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The run's data set, if it is not where it was.")
    ] = None,
    both: Annotated[
        bool, typer.Option("--both", help="The distilled model, and beside it the undistilled one, for comparison.")
    ] = False,
    table: Annotated[
        Table, typer.Option(help="Numbers of the item table; the loss of accuracy by int8 is measured and written.")
    ] = "float32",
    new_items: Annotated[
        bool | None,
        typer.Option(
            "--new-items/--no-new-items",
            help="Fit the map that places new items by their texts \\[default: where the run reads texts].",
        ),
    ] = None,
    text_encoder: Annotated[
        bool,
        typer.Option("--text-encoder", help="Add the sentence encoder (tens of MB): new items can be given as text."),
    ] = False,
    example_histories: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Add N histories of real people, without identifiers, to try. Rare items can tell who somebody is: do "
            "not publish such an export.",
        ),
    ] = 0,
    memory: Annotated[
        MemoryOption,
        typer.Option(
            metavar="WHEN",
            help="The memory beside the model: `auto`, where validation wants it; `on`; `off`.",
        ),
    ] = "auto",
    min_pair_users: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Leave out of the memory what fewer than N users chose after one another, or together; "
            "the loss of accuracy is measured and written.",
        ),
    ] = 1,
    trust_code: TrustCode = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
) -> None:
    """Write the served model as a self-contained folder: ONNX graph, item table, catalogue, checksums, model card.

    The exported graph is run and compared with the trained model before anything is kept.

    Examples:

      llmd4rec export runs/first --out exports/first

      llmd4rec export runs/first --out exports/shop --both --text-encoder
    """
    from llmd4rec.distillation.stage_ids import DISTILLED, MEMORY, SERVED, UNDISTILLED, with_memory, without_memory
    from llmd4rec.export.write import ExportOptions, export_run

    if stage == MEMORY:
        raise ConfigError("an export is of a model, and the memory is none", "Export a model with --memory on.")
    opened = open_run(run, trust_code)
    folder = out or opened.folder / "export"
    name, beside = without_memory(stage)
    chosen = opened.resolve_alone() if memory == "off" and name == SERVED else opened.resolve(name)
    if both and name == SERVED and chosen == UNDISTILLED:  # the two to compare are asked for
        chosen = opened.resolve(DISTILLED)
    summary = export_run(
        opened,
        opened.load_data(data),
        folder,
        with_memory(chosen) if beside else chosen,
        overwrite=overwrite,
        options=ExportOptions(both, table, new_items, text_encoder, example_histories, memory, min_pair_users),
    )
    print(f"{folder}: {chosen}, {summary}")
