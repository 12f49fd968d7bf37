"""What goes in and comes out over HTTP. Types are strict: neither "10" nor true is a number."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from llmd4rec.data.ingest.limits import LONGEST_ID

ItemId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID, description="An identifier of the catalogue.")]
FieldName = Annotated[str, Field(min_length=1, max_length=128)]
# Whole numbers stay whole: as floats, long codes would become others.
FieldText = Annotated[str, Field(max_length=10_000)]
FieldValue = FieldText | bool | int | float | None
Wanted = str | bool | int | float
#: Which model answers: the one that is served, or the same network before distillation, where the export carries it.
Which = Literal["served", "before"]
#: Most identifiers in `exclude`, `allow` and `deny`, each.
MOST_IDS = 10_000


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _listed(value: Any) -> Any:
    """One value as a list of one."""
    if value is None:
        raise PydanticCustomError("no_value", "null is no value: give the values that may come, or leave the field out")
    return [value] if isinstance(value, str | bool | int | float) else value


_Several = Annotated[list[Wanted], Field(min_length=1, max_length=1000)]
#: The schema says what is taken, the type what it becomes. As a union, an error would name each type that was tried.
OneOrSeveral = Annotated[_Several, BeforeValidator(_listed, json_schema_input_type=Wanted | _Several)]


# ---- in ---------------------------------------------------------------------------------------------------------
class Range(_In):
    """Numbers from `min` to `max`, both included; either may be left out."""

    min: float | None = None
    max: float | None = None


class FiltersIn(_In):
    """Which items may come back. All conditions hold at once."""

    where: dict[FieldName, OneOrSeveral] = Field(
        default={},
        description="Per field the value that an item must have, or a list of which it must have one; case does not "
        "matter, and a path stands for all below it.",
        examples=[{"brand": ["Dove"]}],
    )
    between: dict[FieldName, Range] = Field(
        default={}, description="Per numeric field a range.", examples=[{"price": {"max": 20}}]
    )
    allow: list[ItemId] | None = Field(default=None, max_length=MOST_IDS, description="Only these items.")
    deny: list[ItemId] = Field(default=[], max_length=MOST_IDS, description="Never these items.")


class RecommendIn(_In):
    """A history of one person, and what is wanted."""

    history: list[ItemId] = Field(
        description="Items in the order they were chosen, oldest first. Unknown ones are skipped and reported."
    )
    k: int = Field(default=10, ge=1, description="How many items.")
    model: Which = Field(default="served", description="`before`: the same network before distillation.")
    seen: Literal["remove", "keep"] | None = Field(
        default=None,
        description="Whether items of the history may come back; left out: as the model was evaluated.",
    )
    exclude: list[ItemId] = Field(default=[], max_length=MOST_IDS, description="Items that are not wanted.")
    filters: FiltersIn | None = None
    diversity: float = Field(
        default=0.0, ge=0, le=1, description="0: the best scores. Towards 1: fewer items like those above them."
    )
    fields: list[FieldName] | None = Field(
        default=None, max_length=64, description="Fields to show of each item; left out: all but long texts."
    )
    explain: bool = Field(default=False, description="Say which items of the history spoke for each answer.")
    popular_in: dict[FieldName, str] | None = Field(
        default=None,
        max_length=8,
        description="Without a known item in the history: what is popular among items with these values.",
    )


class BatchIn(_In):
    """Many histories at once."""

    requests: list[RecommendIn] = Field(min_length=1)


class SimilarIn(_In):
    """An item, and how many are wanted that are chosen like it."""

    item_id: ItemId
    k: int = Field(default=10, ge=1)
    filters: FiltersIn | None = None


class NewItemIn(_In):
    """An item the model has not seen, whose texts say where it belongs; or what changes of one that is there."""

    item_id: ItemId
    title: str | None = Field(
        default=None, max_length=2048, description="Left out: as it was, where the item is there; null: none."
    )
    fields: dict[FieldName, FieldValue | list[FieldText]] = Field(
        default={},
        max_length=64,
        description="Those left out are as they were, where the item is there; null clears one. A field with several "
        "values takes a list.",
    )
    text: str | None = Field(
        default=None,
        max_length=50_000,
        description="What it is placed by; left out: its title and texts, as in training.",
    )
    vector: list[float] | None = Field(
        default=None, max_length=8192, description="Its text vector, where it was encoded elsewhere."
    )


class AddIn(_In):
    """Items to add."""

    items: list[NewItemIn] = Field(min_length=1)


class LookupIn(_In):
    """The identifiers of the items to show."""

    ids: list[ItemId] = Field(min_length=1)


class RemoveIn(_In):
    """The identifiers of the items to remove."""

    ids: list[ItemId] = Field(min_length=1)


class SwapIn(_In):
    """The export to load."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$", description="A folder of the service's models folder."
    )


# ---- out --------------------------------------------------------------------------------------------------------
class ItemOut(_Out):
    """An item of the catalogue."""

    item_id: str
    title: str
    fields: dict[str, str | float | None] = Field(description="Its further fields, by name.")
    count: int = Field(description="How often it was chosen in the training data; 0: added since.")


class Reason(_Out):
    """An item of the history and what it did to a score."""

    item_id: str
    title: str
    effect: float = Field(
        description="By how much the score, against the catalogue's mean, falls without this item; negative: it rises."
    )


class ScoredOut(_Out):
    """A recommended item."""

    item_id: str
    title: str
    fields: dict[str, str | float | None] = Field(description="Its further fields, by name, without long texts.")
    score: float
    because: list[Reason] | None = Field(default=None, description="With `explain`: strongest first.")


class AnswerOut(_Out):
    """The best items, best first; fewer than asked for where filters leave no more."""

    items: list[ScoredOut]
    unknown: list[str] = Field(description="Identifiers of the history the catalogue does not have.")
    fallback: Literal["popular"] | None = Field(
        description="`popular`: nothing of the history is known, so these are the items most often chosen."
    )
    considered: int = Field(description="Items among which these are the best.")
    model: str = Field(description="Digest of the export that answered.")


class BatchOut(_Out):
    """One answer for each request, in their order."""

    answers: list[AnswerOut]


class ItemsOut(_Out):
    """Items found."""

    items: list[ItemOut]


class AddedOut(_Out):
    """What was added."""

    added: list[str]
    replaced: list[str] = Field(description="Items that were there already.")
    items: int = Field(description="Items in the catalogue now.")


class RemovedOut(_Out):
    """What was removed."""

    removed: list[str]
    unknown: list[str] = Field(description="Identifiers the catalogue does not have.")
    items: int = Field(description="Items in the catalogue now.")


class Facet(_Out):
    """A field of the catalogue that can be filtered by."""

    name: str
    kind: Literal["text", "category", "number"]
    values: list[str] = Field(default=[], description="Of a category: its most frequent values.")
    min: float | None = None
    max: float | None = None


class ModelOut(_Out):
    """An export that is being served."""

    name: str
    network: str
    stage: str
    digest: str
    items: int
    dim: int
    max_length: int
    seen: Literal["remove", "keep"] = Field(description="Whether items of the history may come back, if nobody says.")
    validation_ndcg: float | None = Field(description="NDCG@10 on validation, measured in training.")
    before: bool = Field(description="Whether the export carries the network before distillation.")
    can_add: Literal["text", "vector"] | None = Field(
        description="What a new item is placed by: its texts, a vector that is sent along, or none can be added."
    )
    fields: list[Facet]


class LimitsOut(_Out):
    """What the service allows."""

    max_body: int
    max_history: int
    max_k: int
    max_batch: int
    concurrency: int
    timeout: float


class ModelsOut(_Out):
    """What is served and what could be."""

    served: ModelOut
    available: list[str] = Field(description="Exports that can be loaded by name; empty where loading is off.")
    may_change: bool = Field(description="Whether items may be added and removed over HTTP.")
    limits: LimitsOut


class Example(_Out):
    """The history of a real person of the data, without a name."""

    name: str
    history: list[ItemOut]
    next: ItemOut | None = Field(default=None, description="What was chosen then.")


class ExamplesOut(_Out):
    """Histories to try."""

    examples: list[Example]


class Detail(_Out):
    """One field that is wrong."""

    field: str
    message: str


class ErrorOut(_Out):
    """What was wrong."""

    code: str
    message: str
    request_id: str
    field: str | None = None
    remedy: str | None = None
    details: list[Detail] | None = None


class ErrorBody(_Out):
    """The body of every answer that is no success."""

    error: ErrorOut


class Health(_Out):
    """A sign of life."""

    status: Literal["ok", "ready", "draining"]
