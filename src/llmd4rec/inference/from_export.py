"""The recommender of an export folder: ONNX Runtime encodes the histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmd4rec.errors import RunError
from llmd4rec.inference.catalogue import Catalogue
from llmd4rec.inference.encoder import OnnxEncoder
from llmd4rec.inference.factors import SPACE, FactorRowScorer
from llmd4rec.inference.folder import MEMORY, Folder, Model, new_item_texts, read_folder
from llmd4rec.inference.head import AGAIN, HEAD
from llmd4rec.inference.memory import beside
from llmd4rec.inference.new_items import ItemTexts, NewItemEmbedder
from llmd4rec.inference.opening import LoadOptions, of_stage
from llmd4rec.inference.recommender import Recommender
from llmd4rec.inference.text_map import Floats, with_one
from llmd4rec.scoring.index import ApproximateIndex
from llmd4rec.scoring.memory.content import SPACE as CONTENT
from llmd4rec.scoring.rows import RowScorer


@dataclass(frozen=True)
class LoadedFrom:
    """What is needed to load a recommender again in another process.

    Attributes:
        files: the checksums of the export's files.
        stage: which of the models of the export it is.
        options: as it was loaded with.
    """

    folder: str
    files: Mapping[str, str]
    stage: str
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
        return of_stage(_open_models(read, self.options), self.stage)


def open_export(folder: Path, options: LoadOptions) -> Recommender:
    """Opens an export folder and checks every file in it.

    Raises:
        RunError: a file is missing, altered or does not fit the others, or the export lacks the stage.
    """
    return of_stage(_open_models(read_folder(folder), options), options.stage)


def _open_models(read: Folder, options: LoadOptions) -> Recommender:
    """What is served, with the undistilled model where the export has it."""
    head = read.head
    catalogue = Catalogue.of(read.catalogue, read.counts, head["fields"], read.trained, head.get("multi_fields"))
    texts = ItemTexts(read.path, head, options.threads) if new_item_texts(head) else None
    indexed = options.wants_index(len(catalogue))

    def open_model(model: Model, head: Mapping[str, Any], undistilled: Recommender | None) -> Recommender:
        info, encoder = read.info(head), OnnxEncoder(model.encoder, head["dim"], options.threads)
        if set(encoder.reads) != set(info.reads):
            what = f"{model.encoder} reads {', '.join(encoder.reads) or 'items alone'}, and {HEAD} says otherwise"
            raise RunError(what, AGAIN)
        factors = FactorRowScorer(encoder, model.table_ID, max_length=head["max_length"])
        scorer: RowScorer = factors
        maps: dict[str, Callable[[Floats], Floats]] = {}
        if (text_map := model.text_map) is not None:
            maps[SPACE] = lambda texts_NT: with_one(texts_NT) @ text_map
        alone = None
        if read.memory is not None and info.memory:
            memory = read.memory.with_weights(info.memory)
            if memory.content is not None:
                maps[CONTENT] = memory.content.embed
            alone = read.info({name: value for name, value in head.items() if name != MEMORY})
            scorer = beside(factors, memory, info.memory[SPACE], indexed=indexed)
        elif indexed:
            scorer = FactorRowScorer(encoder, model.table_ID, ApproximateIndex(model.table_ID))
        return Recommender(
            info,
            scorer,
            catalogue,
            undistilled=undistilled,
            examples=read.examples,
            embedder=NewItemEmbedder(texts, maps) if texts and maps else None,
            alone=alone,
            folder=None if model is read.undistilled else read,
            loaded_from=LoadedFrom(str(read.path.resolve()), head["files"], info.stage, options),
        )

    undistilled = None
    if read.undistilled is not None:
        without = {name: value for name, value in head.items() if name != MEMORY}
        undistilled = open_model(read.undistilled, {**without, **head["undistilled"]}, None)
    return open_model(read.model, head, undistilled)
