"""The requests and answers of a recommender: plain frozen values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

from llmd4rec.errors import DataError
from llmd4rec.inference.moments import Moment

#: The value of an item's field; None where it is missing.
Value = str | float | None
#: `category`: few values that many items share; `text`: nearly every item has its own; `number`: has an order.
FieldKind = Literal["category", "text", "number"]
ReasonKind = Literal["model", "follows", "reads-like", "chosen-with", "recent"]
#: What is recommended where no item of a history is known.
Fallback = Literal["recent", "popular"]


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    Attributes:
        title: its title; its identifier where it has none.
        fields: the catalogue's other columns.
        count: how often it occurs in the training data; 0 for items added later.
    """

    item_id: str
    title: str
    fields: Mapping[str, Value]
    count: int


@dataclass(frozen=True)
class Reason:
    """Why an item was recommended.

    Attributes:
        item_id, title: an item of the history; None where the reason is none of these (`recent`).
        effect: how far the score, relative to the catalogue's mean score, falls without this reason: when the item is
            left out of the history, by the model or by one part of the memory. Negative where it rises.
        kind: `model`: by what the model learned; `follows`: it often came after the item; `reads-like`: its text is
            like the item's; `chosen-with`: the same users choose both; `recent`: it is chosen now.
        number: for `follows` how often, nearer ones counting more; for `reads-like` the cosine of the texts; for
            `chosen-with` how often; for `recent` how often in the last seven days.
    """

    item_id: str | None
    title: str | None
    effect: float
    kind: ReasonKind = "model"
    number: float | None = None

    @property
    def text(self) -> str:
        """For people."""
        if self.kind == "recent":
            times = "once" if self.number == 1 else f"{self.number:,.0f} times"
            return f"chosen {times} this week" if self.number else "chosen lately"
        words = {"follows": "often follows ", "reads-like": "reads like ", "chosen-with": "often chosen with "}
        return words.get(self.kind, "") + str(self.title)


@dataclass(frozen=True)
class ScoredItem:
    """A recommended item.

    Attributes:
        reasons: with `explain`, what changed the score most, largest effect first.
    """

    item_id: str
    title: str
    score: float
    fields: Mapping[str, Value]
    reasons: tuple[Reason, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """The recommendations for one request.

    Attributes:
        items: best first; fewer than k only where there are fewer candidates.
        unknown: items of the history that are not in the catalogue; they were skipped.
        fallback: where no item of the history was known. `recent`: the items are those chosen most of late, and their
            scores are what the memory gives for it; `popular`: the most frequent ones of the training data, scored by
            their counts.
        num_candidates: how many items were ranked, after filters, exclusions and the filtering of seen items.
    """

    items: tuple[ScoredItem, ...]
    unknown: tuple[str, ...]
    fallback: Fallback | None
    num_candidates: int

    def __str__(self) -> str:
        """A table for people."""
        rows = [(str(rank), item.item_id, item.title, f"{item.score:.3f}") for rank, item in enumerate(self.items, 1)]
        rows = [("", "item", "title", "score"), *rows]
        widths = [max(cell_len(row[column]) for row in rows) for column in range(4)]
        lines = []
        for place, row in enumerate(rows):
            cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
            reasons = self.items[place - 1].reasons if place else None
            lines += [f"{'':{widths[0]}}    {reason.effect:+.2f} {reason.text}" for reason in reasons or ()]
        if self.fallback == "popular":
            lines.append("No item of the history is known: these are the most frequent ones, with their counts.")
        elif self.fallback:
            lines.append("No item of the history is known: these are chosen most of late.")
        if self.unknown:
            lines.append(f"Not in the catalogue, and skipped: {', '.join(map(repr, self.unknown))}.")
        return "\n".join(lines)


@dataclass(frozen=True)
class Filters:
    """Which items may be recommended; all conditions hold together.

    >>> dove = Filters(any_of={"brand": "Dove"}, at_most={"price": 20})
    >>> two = Recommender.load("runs/first").recommend(["i3"], filters=Filters(allow=["i4", "i5"]))
    >>> sorted(item.item_id for item in two.items)
    ['i4', 'i5']

    Attributes:
        any_of: field → its allowed values (or one value). Case does not matter. A value of a path includes all below
            it: `Beauty > Makeup` allows `Beauty > Makeup > Eyes`. Items without a value are not allowed.
        at_least, at_most: number field → its bound, inclusive. Items without a number are not allowed.
        allow: only these identifiers; None: no such restriction.
        deny: never these identifiers; None: nothing is denied.
    """

    any_of: Mapping[str, str | float | Collection[str | float]] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    allow: Collection[str | int] | None = None
    deny: Collection[str | int] | None = ()


@dataclass(frozen=True)
class Request:
    """The arguments of :meth:`~llmd4rec.inference.recommender.Recommender.recommend`.

    Attributes:
        history: identifiers, oldest first; unknown ones are skipped and reported. Whole numbers are read as text.
        k: how many items to recommend.
        filter_seen: whether items of the history are left out; None: as in the evaluation of the model.
        exclude: identifiers that must not be recommended; unknown ones are fine; None: nothing is excluded.
        filters: which items may be recommended.
        diversity: from 0 (by score alone) to 1 (as different from each other as possible); see `docs/serving.md`.
        explain: also return what changed each score most.
        popular_in: field → value; where no item of the history is known, only items with these values.
        skip_unknown: identifiers of the history that the catalogue does not have are skipped; false: they are an error.
        times: when each item of the history was chosen; needed by models that read times, checked for all.
        now: the moment for which is recommended, which such a model and a memory read too; None: the current time.
    """

    history: Sequence[str | int] = ()
    k: int = 10
    filter_seen: bool | None = None
    exclude: Collection[str | int] | None = ()
    filters: Filters | None = None
    diversity: float = 0.0
    explain: bool = False
    popular_in: Mapping[str, str] | None = None
    skip_unknown: bool = True
    times: Sequence[Moment] | None = None
    now: Moment | None = None


class Options(TypedDict, total=False):
    """What a request says besides history, k and times; see :class:`Request`."""

    filter_seen: bool | None
    exclude: Collection[str | int] | None
    filters: Filters | None
    diversity: float
    explain: bool
    popular_in: Mapping[str, str] | None
    skip_unknown: bool
    now: Moment | None


@dataclass(frozen=True)
class NewItem:
    """An item to add to a running recommender, or the changes to an item that it has.

    >>> recommender = Recommender.load("runs/first")
    >>> recommender.add_items([NewItem("i3", title="Another title")])
    AddedReport(added=(), replaced=('i3',))
    >>> recommender.item("i3").title
    'Another title'

    Attributes:
        title: None leaves the title of a known item as it is; "" removes it.
        fields: values of the catalogue's other fields. A field with several values takes a list, or text as it was
            written in the catalogue's file. Fields left out stay as they are for a known item, and are missing for a
            new one; None removes a value.
        text: the text that is encoded; None: title and text fields, as in training.
        vector: its text vector [T], if it was encoded elsewhere with the export's text encoder. It is normalised to
            length 1, as in training.
    """

    item_id: str
    title: str | None = None
    fields: Mapping[str, Value | Sequence[str]] = field(default_factory=dict)
    text: str | None = None
    vector: Sequence[float] | NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Event:
    """Something that was chosen; see :meth:`~llmd4rec.inference.recommender.Recommender.observe`.

    Attributes:
        history: what the same user chose before, oldest first; unknown items are skipped.
        item: what was chosen.
        time: when; None: now.
        times: when each item of the history was chosen; needed where items of one moment count half each way.
    """

    history: Sequence[str | int]
    item: str | int
    time: Moment | None = None
    times: Sequence[Moment] | None = None


@dataclass(frozen=True)
class AddedReport:
    """The result of adding items: identifiers that are new, and those of items that were replaced."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]


@dataclass(frozen=True)
class RemovedReport:
    """The result of removing items: identifiers that were removed, and those that the catalogue did not have."""

    removed: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class ExportInfo:
    """What a recommender serves.

    Attributes:
        name: of the folder it was loaded from.
        format: format version of the folder.
        stage: id of the training stage that the model comes from, such as `undistilled` or `distilled-round-2`.
        model: name of the network.
        dim: width of states and item embeddings.
        items: number of items that can be recommended.
        max_length: how many of the latest items of a history are read.
        fields: the catalogue's fields besides `item_id` and `title`, with their kinds.
        fingerprint: a hash of all files of the export; it does not change when items are added.
        validation: value of the selection metric on the validation items.
        selection: that metric, such as `NDCG@10`.
        can_add: what `add_items` needs for a new item: `text`, `vector` (the export has no text encoder), or None (new
            items cannot be added).
        filter_seen: whether items of the history were left out when the model was evaluated; the default of requests.
        reads: what the model reads of a history beside its items, such as `times`.
        memory: the parts of the memory beside the model and their weights, the model's own among them; empty: it has
            none.
        about: the other entries of export.json.
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
    selection: str
    can_add: Literal["text", "vector"] | None = None
    filter_seen: bool = True
    reads: tuple[str, ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def identifiers(name: str, given: Any, *, ordered: bool = False) -> list[str]:
    """Checks a list of identifiers and turns whole numbers into text.

    Args:
        name: what the list is called in an error.
        ordered: whether their order matters, so that a set is refused.

    Raises:
        DataError: `given` is a single text, is not a list of identifiers, or has no order; names it.
    """
    if ordered and isinstance(given, set | frozenset):
        raise DataError(f"the {name} is a set, which has no order", "Give a list, oldest first.")
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        what = "a mapping" if isinstance(given, Mapping) else "a table"
        raise DataError(f"the {name} is {what}, not a list of identifiers", "Give one column of it, or a list.")
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        what = "a single text" if isinstance(given, str | bytes) else "not a list"
        raise DataError(f"the {name} is {what}: {given!r}", "Give a list of identifiers.")
    return [one if type(one) is str else _identifier(name, one) for one in given]


def _identifier(name: str, given: Any) -> str:
    # True is an integer to Python.
    if isinstance(given, bool) or not isinstance(given, str | Integral):
        raise DataError(f"the {name} contains {given!r}, which is not an identifier", "Give identifiers as text.")
    return str(given)
