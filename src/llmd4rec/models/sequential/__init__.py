"""Sequential recommendation models, one file each.

A new one is a settings class with `name`, `dim`, `max_length`, `item_features` and
`build(num_items, seed) -> SequenceEncoder` in a file of its own, added to
:data:`SequentialModel` and, by its name, to :data:`NetworkName`.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from llmd4rec.models.sequential.bsarec import BSARec
from llmd4rec.models.sequential.gru4rec import GRU4Rec
from llmd4rec.models.sequential.ligr import LiGR
from llmd4rec.models.sequential.sasrec import SASRec


def _name(settings: Any) -> Any:
    """Which model settings are of: SASRec where they do not say."""
    return settings.get("name", "sasrec") if isinstance(settings, dict) else getattr(settings, "name", None)


#: Settings of any sequential model, told apart by `name`.
SequentialModel = Annotated[
    Annotated[SASRec, Tag("sasrec")]
    | Annotated[BSARec, Tag("bsarec")]
    | Annotated[LiGR, Tag("ligr")]
    | Annotated[GRU4Rec, Tag("gru4rec")],
    Discriminator(_name),
]

#: Their names.
NetworkName = Literal["sasrec", "bsarec", "ligr", "gru4rec"]

__all__ = ["BSARec", "GRU4Rec", "LiGR", "NetworkName", "SASRec", "SequentialModel"]
