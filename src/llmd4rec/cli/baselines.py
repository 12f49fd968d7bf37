"""`llmd4rec baselines`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmd4rec.cli.evaluate import ROLLING_ONLY, ChooseOn, CountTo, Every, History, Released, Split, Windows
from llmd4rec.cli.opening import refuse_given

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmd4rec.data.dataset import Dataset


def baselines(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Prepared data set, from `llmd4rec prepare`.")],
    split: Annotated[Split, typer.Option(help="Which held-out items.")] = "test",
    filter_seen: Annotated[
        bool,
        typer.Option(
            "--filter-seen/--no-filter-seen", help="Leave items of the history out of the ranking, or keep them."
        ),
    ] = True,
    rolling: Annotated[
        bool,
        typer.Option("--rolling", help="Windows of time behind a cut instead: in each the next item of every user."),
    ] = False,
    windows: Windows = 10,
    every: Every = "7d",
    choose_on: ChooseOn = 3,
    count_to: CountTo = "window",
    history: History = None,
    released: Released = None,
    cut_fraction: Annotated[
        float | None,
        typer.Option(
            help="With --rolling: the share of the interactions behind the cut \\[default: the test part of a "
            "temporal split, else 0.1]."
        ),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER", help="Sentence encoder of the item texts, or none \\[default: that of `train`]."
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate what needs no training: popularity, recency, content, transitions, item-knn, and the memory.

    A trained model is worth its training if it beats the best of them. The memory is a weighted sum of content,
    transitions, recency and item-knn. Item texts are encoded once and then found in the user's cache folder.

    Examples:

      llmd4rec baselines data/mine

      llmd4rec baselines data/mine --split valid --json

      llmd4rec baselines data/mine --rolling --every 7d

      llmd4rec baselines data/sessions --rolling --every 3h --windows 8 --history event
    """
    from llmd4rec.data.dataset import Dataset
    from llmd4rec.log import print_json, stdout_console

    if rolling:
        refuse_given(context, ("split",), "has no meaning with --rolling: windows lie behind a cut", "Leave it out.")
    else:
        names = (*(name for name in ROLLING_ONLY if name != "modes"), "cut_fraction")
        refuse_given(context, names, "is for --rolling", "Add --rolling, or leave it out.")
    dataset = Dataset.load(data)
    texts_IT = _text_vectors(dataset, texts)
    if rolling:
        from llmd4rec.evaluation.rolling import rolling as evaluate_rolling
        from llmd4rec.evaluation.rolling_tables import print_rolling
        from llmd4rec.evaluation.windows import Rolling, cut_at_fraction, seconds_of

        cut = None
        if cut_fraction is not None or not dataset.is_temporal:
            cut = cut_at_fraction(dataset, 0.1 if cut_fraction is None else cut_fraction)
        asked = Rolling(
            windows=windows,
            every=seconds_of(every),
            choose_on=choose_on,
            count_to=count_to,
            history=history,
            released=released,
            filter_seen=filter_seen,
            cut=cut,
        )
        found = evaluate_rolling(dataset, asked, texts_IT=texts_IT)
        if json_output:
            print_json(found.to_json())
        else:
            print_rolling(found, str(data))
        return
    from llmd4rec.evaluation.baselines import evaluate_baselines

    figures = evaluate_baselines(dataset, texts_IT, split=split, filter_seen=filter_seen)
    if json_output:
        print_json(figures.to_json())
        return
    stdout_console().print(figures.table())


def _text_vectors(dataset: Dataset, encoder: str | None) -> NDArray[np.float32] | None:
    lines = dataset.texts()
    if encoder == "none" or not any(lines):
        return None
    from llmd4rec.features.text_settings import TextSettings
    from llmd4rec.models.llm.item_text import encode_texts

    return encode_texts(lines, encoder or TextSettings().encoder)
