"""What answers, as an evaluator asks it: the scorer of a recommender in PyTorch's terms."""

from __future__ import annotations

from llmd4rec.data.arrays import INPUTS
from llmd4rec.inference.memory import memory_of
from llmd4rec.inference.types import ExportInfo
from llmd4rec.scoring.from_rows import RowsScorer
from llmd4rec.scoring.rows import RowScorer


class RecommenderScorer(RowsScorer):
    """The scorer of a recommender: an exported graph in ONNX Runtime, a model, or another one.

    Where the recommender searches a large catalogue through an index, this scores every item.

    Args:
        scorer: scores the rows of a catalogue.
        info: what it is.
    """

    def __init__(self, scorer: RowScorer, info: ExportInfo) -> None:
        memory = memory_of(scorer)
        super().__init__(
            scorer,
            f"{info.model} {info.dim}" + (" + memory" if memory is not None and memory is not scorer else ""),
            max_length=info.max_length,
            # Requests give all times or none, of which the encoder then reads what it needs.
            reads=INPUTS if info.reads else () if memory is None else memory.reads,
            stage=info.stage,
        )
