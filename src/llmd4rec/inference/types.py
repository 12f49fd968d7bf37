"""What an engine is asked and what it answers: plain values, frozen, without a library behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from llmd4rec.errors import DataError

#: What a field of an item may hold.
Value = str | float | None
#: `category`: few values, many items each; `text`: nearly every item its own; `number`: can be compared.
FieldKind = Literal["category", "text", "number"]
Seen = Literal["remove", "keep"]


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    Attributes:
        title: what to call it; its identifier where it has no title.
        fields: the catalogue's other columns.
        count: how often it occurs in the training data; 0 for items added later.
    """

    item_id: str
    title: str
    fields: Mapping[str, Value]
    count: int


@dataclass(frozen=True)
class Because:
    """How much an item of the history moved a recommended item's score.

    Attributes:
        effect: by how much the score, beside the mean score of the catalogue, falls when the item is taken out of the
            history; negative where it rises.
    """

    item_id: str
    title: str
    effect: float


@dataclass(frozen=True)
class Scored:
    """One item of an answer, with the reasons for it where they were asked for, strongest first."""

    item_id: str
    title: str
    score: float
    fields: Mapping[str, Value]
    because: tuple[Because, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """What comes back for one request.

    Attributes:
        items: best first; fewer than k only where the catalogue has no more that may come.
        unknown: items of the history that are not in the catalogue; they were skipped.
        fallback: `popular` where no item of the history was known, so that the most frequent items of the training
            data came, scored by their count.
        considered: how many items were candidates after filters, exclusions and seen items.
    """

    items: tuple[Scored, ...]
    unknown: tuple[str, ...]
    fallback: Literal["popular"] | None
    considered: int


@dataclass(frozen=True)
class Filters:
    """Which items may come; all conditions hold together.

    Attributes:
        any_of: field → its allowed values (or one value). Case does not matter. A value of a path stands for all below
            it: `Beauty > Makeup` admits `Beauty > Makeup > Eyes`. Items without a value do not pass.
        at_least, at_most: number field → its bounds, both included. Items without a number do not pass.
        allow: only these identifiers, where given.
        deny: never these; None: nothing is denied.
    """

    any_of: Mapping[str, str | float | Collection[str | float]] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    allow: Collection[str] | None = None
    deny: Collection[str] | None = ()


@dataclass(frozen=True)
class Request:
    """The arguments of :meth:`~llmd4rec.inference.engine.Engine.recommend`.

    Attributes:
        history: identifiers, oldest first; unknown ones are skipped and reported. Whole numbers are read as text.
        k: how many items.
        seen: whether items of the history may come back; None: as the model was evaluated.
        exclude: identifiers that must not come back; unknown ones are fine; None: nothing.
        filters: which items may come.
        diversity: from 0 (scores alone) towards 1 (unlike each other); see `docs/serving.md`.
        explain: also say which items of the history moved each score most.
        popular_in: field → value; where the history has no known item, the most frequent items with these values come.
    """

    history: Sequence[str] = ()
    k: int = 10
    seen: Seen | None = None
    exclude: Collection[str] | None = ()
    filters: Filters | None = None
    diversity: float = 0.0
    explain: bool = False
    popular_in: Mapping[str, str] | None = None


@dataclass(frozen=True)
class NewItem:
    """An item to add to a running engine.

    Attributes:
        title: None: as it was, where the item is known; "" clears it.
        fields: values of the catalogue's other fields; of one that holds several values a list, or a text written as
            the catalogue's were. Those left out are as they were where the item is known, else
            missing; None clears one.
        text: what its vector is made from; None: title and text fields, as in training.
        vector: its text vector, where it was encoded elsewhere; [T] of the export's text encoder. Its length does not
            matter: it is brought to 1, the length of the vectors in training.
    """

    item_id: str
    title: str | None = None
    fields: Mapping[str, Value | Sequence[str]] = field(default_factory=dict)
    text: str | None = None
    vector: Sequence[float] | None = None


@dataclass(frozen=True)
class AddedReport:
    """Identifiers that are new, and those whose item was there and was replaced."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]


@dataclass(frozen=True)
class RemovedReport:
    """Identifiers that were removed, and those that were not there."""

    removed: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class ExportInfo:
    """What an engine serves.

    Attributes:
        name: of the folder it was loaded from.
        format: version of the folder's format.
        stage: `alone` or `distilled`.
        model: name of the network.
        dim: d.
        items: items that may come.
        max_length: how many of the latest items of a history are read.
        fields: the catalogue's fields besides `item_id` and `title`, with their kinds.
        fingerprint: a hash of all files of the export; stays the same when items are added.
        validation: NDCG@10 on the validation items.
        can_add: what `add_items` needs: `text`, `vector` (the export has no text encoder), or None (no texts).
        seen: what was done with items of the history when the model was evaluated, and is where a request does not say.
        about: the rest of export.json.
    """

    name: str
    format: int
    stage: str
    model: str
    dim: int
    items: int
    max_length: int
    fields: Mapping[str, FieldKind]
    fingerprint: str
    validation: float
    can_add: Literal["text", "vector"] | None = None
    seen: Seen = "remove"
    about: Mapping[str, Any] = field(default_factory=dict)


def identifiers(name: str, given: Any, *, ordered: bool = False) -> list[str]:
    """Identifiers as text, as the catalogue has them: whole numbers are written out.

    Args:
        name: of the argument they come from.
        ordered: whether their order means something, which a set does not have.

    Raises:
        DataError: they are one text, which would be taken apart into letters, or none at all, or have no order; names
            the argument.
    """
    if ordered and isinstance(given, set | frozenset):
        raise DataError(f"the {name} is a set, which has no order", "Give a list, oldest first.")
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        what = "a mapping" if isinstance(given, Mapping) else "a table"
        raise DataError(f"the {name} is {what}, not a list of identifiers", "Give one column of it, or a list.")
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        what = "one text" if isinstance(given, str | bytes) else "no list"
        raise DataError(f"the {name} is {what}, {given!r}", "Give a list of identifiers.")
    return [one if type(one) is str else _identifier(name, one) for one in given]


def _identifier(name: str, given: Any) -> str:
    # True is an integer to Python.
    if isinstance(given, bool) or not isinstance(given, str | Integral):
        raise DataError(f"the {name} has {given!r} in it, which is no identifier", "Give identifiers as text.")
    return str(given)
