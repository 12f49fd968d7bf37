"""Sequential recommendation models, one file each.

How to add one says :class:`~llmd4rec.models.settings.ModelSettings`.
"""

from typing import Annotated

from llmd4rec.config.open_types import open_type
from llmd4rec.models.sequential.bsarec import BSARec
from llmd4rec.models.sequential.gru4rec import GRU4Rec
from llmd4rec.models.sequential.ligr import LiGR
from llmd4rec.models.sequential.sasrec import SASRec
from llmd4rec.models.settings import ModelSettings

#: The models that are known by name.
MODELS = open_type(
    "model",
    ModelSettings,
    {
        "sasrec": "llmd4rec.models.sequential.sasrec:SASRec",
        "bsarec": "llmd4rec.models.sequential.bsarec:BSARec",
        "ligr": "llmd4rec.models.sequential.ligr:LiGR",
        "gru4rec": "llmd4rec.models.sequential.gru4rec:GRU4Rec",
    },
    default="sasrec",
)

#: Settings of any sequential model.
SequentialModel = Annotated[ModelSettings, MODELS]

__all__ = ["MODELS", "BSARec", "GRU4Rec", "LiGR", "SASRec", "SequentialModel"]
