"""The recommender of an export folder: ONNX Runtime encodes the histories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmd4rec.errors import RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import OnnxEncoder
from llmd4rec.inference.factors import SPACE, FactorRowScorer
from llmd4rec.inference.folder import Folder, Model, read_folder
from llmd4rec.inference.new_items import ItemTexts, NewItemEmbedder
from llmd4rec.inference.opening import LoadOptions, of_stage
from llmd4rec.inference.recommender import Recommender
from llmd4rec.scoring.index import ApproximateIndex


@dataclass(frozen=True)
class LoadedFrom:
    """What is needed to load a recommender again in another process.

    Attributes:
        files: the checksums of the export's files.
        undistilled: it is the undistilled model of the export.
        options: as it was loaded with.
    """

    folder: str
    files: Mapping[str, str]
    undistilled: bool
    options: LoadOptions

    def load_again(self) -> Recommender:
        """The recommender, in the process that it was sent to.

        Raises:
            RunError: its folder is not there, or contains another export by now.
        """
        folder = Path(self.folder)
        if not folder.is_dir():
            raise RunError(
                f"a recommender came from another process, and its export {folder} is not there on this machine",
                "Copy the export there under the same path, or call Recommender.load(FOLDER) in each process.",
            )
        read = read_folder(folder)
        if read.head["files"] != self.files:
            raise RunError(
                f"{folder} contains another export than when the recommender was loaded that came from another process",
                "Load it again in both: Recommender.load(FOLDER).",
            )
        served, undistilled = _open_models(read, self.options)
        return undistilled if self.undistilled and undistilled is not None else served


def open_export(folder: Path, options: LoadOptions) -> Recommender:
    """Opens an export folder and checks every file in it.

    Raises:
        RunError: a file is missing, altered or does not fit the others, or the export lacks the stage.
    """
    return of_stage(_open_models(read_folder(folder), options)[0], options.stage)


def _open_models(read: Folder, options: LoadOptions) -> tuple[Recommender, Recommender | None]:
    """What is served, and the undistilled model where the export has it."""
    head = read.head
    catalogue = Catalogue.of(read.catalogue, read.counts, head["fields"], read.trained, head.get("multi_fields"))
    texts = ItemTexts(read.path, head, options.threads) if head.get("new_items") else None

    def open_model(model: Model, head: Mapping[str, Any], undistilled: Recommender | None) -> Recommender:
        beside = model is read.undistilled
        index = ApproximateIndex(model.table_ID) if options.wants_index(len(catalogue)) else None
        return Recommender(
            read.info(head),
            FactorRowScorer(OnnxEncoder(model.encoder, head["dim"], options.threads), model.table_ID, index),
            catalogue,
            undistilled=undistilled,
            examples=read.examples,
            embedder=NewItemEmbedder(texts, {SPACE: model.text_map}) if texts and model.text_map is not None else None,
            folder=None if beside else read,
            loaded_from=LoadedFrom(str(read.path.resolve()), head["files"], beside, options),
        )

    undistilled = None
    if read.undistilled is not None:
        undistilled = open_model(read.undistilled, {**head, **head["undistilled"]}, None)
    return open_model(read.model, head, undistilled), undistilled
