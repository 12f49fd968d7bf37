"""The bodies of HTTP requests and answers. Types are strict: neither "10" nor true is a number."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.inference.types import Fallback, ReasonKind

ItemId = Annotated[str, Field(min_length=1, max_length=LONGEST_ID, description="An identifier of the catalogue.")]
FieldName = Annotated[str, Field(min_length=1, max_length=128)]
# Whole numbers stay whole: as floats, long codes would become others.
FieldText = Annotated[str, Field(max_length=10_000)]
FieldValue = FieldText | bool | int | float | None
When = int | Annotated[str, Field(max_length=40)]
FilterValue = str | bool | int | float
#: Which model answers: the one that is served, or the undistilled one, where the export has it.
ModelName = Literal["served", "undistilled"]
#: The maximum number of identifiers in each of `exclude`, `allow` and `deny`.
MAX_IDS = 10_000
#: Fields of requests that had another name; sending one is an error that says what to send instead.
RENAMED_FIELDS = {"seen": '`seen` is now `filter_seen`: send true for "remove", false for "keep"'}


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _listed(value: Any) -> Any:
    """One value as a list of one."""
    if value is None:
        raise PydanticCustomError("no_value", "null is not a value: give the allowed values, or leave the field out")
    return [value] if isinstance(value, str | bool | int | float) else value


_Several = Annotated[list[FilterValue], Field(min_length=1, max_length=1000)]
#: The schema describes what can be sent, the type what it becomes. Errors about a union would name each of its types.
OneOrSeveral = Annotated[_Several, BeforeValidator(_listed, json_schema_input_type=FilterValue | _Several)]


# ---- in ---------------------------------------------------------------------------------------------------------
class Range(_In):
    """Numbers from `min` to `max`, both included; either may be left out."""

    min: float | None = None
    max: float | None = None


class FiltersIn(_In):
    """Which items may be recommended. All conditions hold together."""

    where: dict[FieldName, OneOrSeveral] = Field(
        default={},
        description="Per field the allowed value, or a list of allowed values. Case does not matter, and a path "
        "includes all below it.",
        examples=[{"brand": ["Dove"]}],
    )
    between: dict[FieldName, Range] = Field(
        default={}, description="Per numeric field a range.", examples=[{"price": {"max": 20}}]
    )
    allow: list[ItemId] | None = Field(default=None, max_length=MAX_IDS, description="Only these items.")
    deny: list[ItemId] = Field(default=[], max_length=MAX_IDS, description="Never these items.")


class RecommendIn(_In):
    """The history of one user, and how to recommend."""

    history: list[ItemId] = Field(description="Item identifiers, oldest first. Unknown ones are skipped and reported.")
    k: int = Field(default=10, ge=1, description="How many items to recommend.")
    model: ModelName = Field(
        default="served", description="`undistilled`: the same network trained without distillation."
    )
    filter_seen: bool | None = Field(
        default=None,
        description="Whether items of the history are left out; if not sent: as in the evaluation of the model.",
    )
    exclude: list[ItemId] = Field(default=[], max_length=MAX_IDS, description="Items that must not be recommended.")
    filters: FiltersIn | None = None
    diversity: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="0: by score alone. Towards 1: fewer items that are similar to those above them.",
    )
    fields: list[FieldName] | None = Field(
        default=None, max_length=64, description="Fields to return with each item; if not sent: all except long texts."
    )
    explain: bool = Field(default=False, description="Return what changed each score most.")
    popular_in: dict[FieldName, str] | None = Field(
        default=None,
        max_length=8,
        description="If no item of the history is known: only items with these values.",
    )

    times: list[When] | None = Field(
        default=None,
        description="When each item of the history was chosen: seconds since 1970, or ISO text. Models that read times "
        "need it; see `reads` of the model.",
    )
    now: When | None = Field(
        default=None, description="The moment for which is recommended; if not sent: the current time."
    )


class BatchIn(_In):
    """Many histories at once."""

    requests: list[RecommendIn] = Field(min_length=1)


class SimilarIn(_In):
    """An item, and how many similar ones to return."""

    item_id: ItemId
    k: int = Field(default=10, ge=1)
    filters: FiltersIn | None = None


class NewItemIn(_In):
    """A new item, whose embedding is made from its texts; or the changes to an item of the catalogue."""

    item_id: ItemId
    title: str | None = Field(
        default=None, max_length=2048, description="If not sent: a known item keeps its title; null removes it."
    )
    fields: dict[FieldName, FieldValue | list[FieldText]] = Field(
        default={},
        max_length=64,
        description="A known item keeps the fields that are not sent; null removes a value. A field with several "
        "values takes a list.",
    )
    text: str | None = Field(
        default=None,
        max_length=50_000,
        description="The text its embedding is made from; if not sent: title and text fields, as in training.",
    )
    vector: list[float] | None = Field(
        default=None, max_length=8192, description="Its text vector, if it was encoded elsewhere."
    )


class AddIn(_In):
    """Items to add."""

    items: list[NewItemIn] = Field(min_length=1)


class LookupIn(_In):
    """The identifiers of the items to return."""

    ids: list[ItemId] = Field(min_length=1)


class RemoveIn(_In):
    """The identifiers of the items to remove."""

    ids: list[ItemId] = Field(min_length=1)


class EventIn(_In):
    """Something that a user has chosen."""

    history: list[ItemId] = Field(
        description="What the same user chose before, oldest first. Unknown items are skipped."
    )
    item_id: ItemId
    time: When | None = Field(default=None, description="When; if not sent: now.")
    times: list[When] | None = Field(
        default=None,
        description="When each item of the history was chosen; needed where items of one moment count half each way.",
    )


class EventsIn(_In):
    """Events to count in, in the order of their times."""

    events: list[EventIn] = Field(min_length=1)


class SwapIn(_In):
    """The export to load."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$",
        description="The name of an export in the service's models folder.",
    )


# ---- out --------------------------------------------------------------------------------------------------------
class ItemOut(_Out):
    """An item of the catalogue."""

    item_id: str
    title: str
    fields: dict[str, str | float | None] = Field(description="Its other fields, by name.")
    count: int = Field(description="How often it occurs in the training data; 0 for items added later.")


class ReasonOut(_Out):
    """What changed a score: an item of the history, or that the item is chosen now."""

    item_id: str | None = Field(description="An item of the history; null for `recent`.")
    title: str | None
    effect: float = Field(
        description="How far the score, relative to the catalogue's mean score, falls without this; negative: it rises."
    )
    kind: ReasonKind = Field(
        description="`model`: by what the model learned. By the memory: `follows`, it often comes after the item; "
        "`reads-like`, the texts are alike; `chosen-with`, the same users choose both; `recent`, it is chosen now."
    )
    number: float | None = Field(
        description="`follows`: how often, nearer ones counting more; `reads-like`: the cosine of the texts; "
        "`chosen-with`: how often; `recent`: how often in the last seven days."
    )


class ScoredItemOut(_Out):
    """A recommended item."""

    item_id: str
    title: str
    fields: dict[str, str | float | None] = Field(description="Its other fields, by name, without long texts.")
    score: float
    reasons: list[ReasonOut] | None = Field(default=None, description="With `explain`: largest effect first.")


Revision = Annotated[
    str,
    Field(
        description="What the catalogue and the memory have become since the export was loaded: `0`, or the number of "
        "changes and a hash of them. An answer knows at least the changes up to the revision it names."
    ),
]


class AnswerOut(_Out):
    """The recommended items, best first; fewer than k where there are fewer candidates."""

    items: list[ScoredItemOut]
    unknown: list[str] = Field(description="Identifiers of the history that the catalogue does not have.")
    fallback: Fallback | None = Field(
        description="No item of the history is known. `recent`: these items are chosen most of late; `popular`: they "
        "are the most frequent ones in training."
    )
    num_candidates: int = Field(description="How many items were ranked, after filters and exclusions.")
    fingerprint: str = Field(description="Fingerprint of the export that answered.")
    revision: Revision


class BatchOut(_Out):
    """One answer for each request, in the same order."""

    answers: list[AnswerOut]


class ItemsOut(_Out):
    """Items found."""

    items: list[ItemOut]


class AddedOut(_Out):
    """The result of adding items."""

    added: list[str]
    replaced: list[str] = Field(description="Items that the catalogue had already.")
    items: int = Field(description="The number of items in the catalogue now.")
    revision: Revision


class RemovedOut(_Out):
    """The result of removing items."""

    removed: list[str]
    unknown: list[str] = Field(description="Identifiers that the catalogue does not have.")
    items: int = Field(description="The number of items in the catalogue now.")
    revision: Revision


class CountedOut(_Out):
    """The result of counting events in."""

    counted: int
    revision: Revision


class Facet(_Out):
    """A field of the catalogue that can be filtered by."""

    name: str
    kind: Literal["text", "category", "number"]
    values: list[str] = Field(default=[], description="For a category: its most frequent values.")
    min: float | None = None
    max: float | None = None


class ModelOut(_Out):
    """An export that is being served."""

    name: str
    network: str
    stage: str
    fingerprint: str
    items: int
    dim: int
    max_length: int
    filter_seen: bool = Field(description="Whether items of the history are left out where a request does not say.")
    validation: float | None = Field(description="Value of the selection metric on the validation items.")
    selection: str = Field(description="The metric by which epochs and rounds were chosen, such as NDCG@10.")
    has_undistilled: bool = Field(description="Whether the export has the undistilled model too.")
    can_add: Literal["text", "vector"] | None = Field(
        description="What a new item needs: its texts, or a text vector; null: items cannot be added."
    )
    reads: list[str] = Field(description="What the model reads of a history beside its items, such as `times`.")
    memory: dict[str, float] = Field(
        description="The parts of the memory beside the model and their weights, the model's among them; empty: none."
    )
    fields: list[Facet]


class LimitsOut(_Out):
    """The limits of the service."""

    max_body: int
    max_history: int
    max_k: int
    max_batch: int
    concurrency: int
    timeout: float


class ModelsOut(_Out):
    """What is served, and which other exports can be loaded."""

    served: ModelOut
    revision: Revision
    available: list[str] = Field(
        description="Exports that can be loaded by name; empty if the service has no models folder."
    )
    changes_allowed: bool = Field(description="Whether items can be added and removed, and exports loaded, over HTTP.")
    limits: LimitsOut


class Example(_Out):
    """The history of a real user of the data set, without a name."""

    name: str
    history: list[ItemOut]
    next: ItemOut | None = Field(default=None, description="The item that the user chose next.")


class ExamplesOut(_Out):
    """Example histories."""

    examples: list[Example]


class Detail(_Out):
    """A field that is wrong."""

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
    """The body of every answer with an error status."""

    error: ErrorOut


class Health(_Out):
    """The state of the service."""

    status: Literal["ok", "ready", "draining"]
