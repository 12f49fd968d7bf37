"""Conversion between HTTP bodies and the recommender's requests and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmd4rec.inference.types import Event, Filters, Item, NewItem, Request, ScoredItem
from llmd4rec.server.schema import EventIn, FiltersIn, NewItemIn, RecommendIn
from llmd4rec.server.service import Reply, Served


def to_new_item(item: NewItemIn) -> NewItem:
    """The item of a body."""
    # A title of null is removed, as a field of null is; one that is not sent stays.
    title = "" if item.title is None and "title" in item.model_fields_set else item.title
    return NewItem(item.item_id, title, item.fields, item.text, item.vector)


def to_event(event: EventIn) -> Event:
    """The event of a body."""
    return Event(event.history, event.item_id, event.time, event.times)


def to_request(body: RecommendIn) -> Request:
    """The request of a body."""
    return Request(
        history=body.history,
        k=body.k,
        filter_seen=body.filter_seen,
        exclude=body.exclude,
        filters=to_filters(body.filters),
        diversity=body.diversity,
        explain=body.explain,
        popular_in=body.popular_in,
        times=body.times,
        now=body.now,
    )


def to_filters(filters: FiltersIn | None) -> Filters | None:
    """The filters of a body."""
    if filters is None:
        return None
    between = filters.between.items()
    return Filters(
        any_of=filters.where,
        at_least={name: edge.min for name, edge in between if edge.min is not None},
        at_most={name: edge.max for name, edge in between if edge.max is not None},
        allow=filters.allow,
        deny=filters.deny,
    )


def answer_json(reply: Reply, body: RecommendIn | None) -> dict[str, Any]:
    """As :class:`AnswerOut`. Long texts are returned only on request: they would be most of the answer."""
    answer, served = reply.answer, reply.served
    fields = served.default_fields if body is None or body.fields is None else body.fields
    return {
        "items": [_scored_json(scored, fields) for scored in answer.items],
        "unknown": answer.unknown,
        "fallback": answer.fallback,
        "num_candidates": answer.num_candidates,
        "fingerprint": served.fingerprint,
        "revision": served.revision,
    }


def _scored_json(scored: ScoredItem, names: Sequence[str]) -> dict[str, Any]:
    fields: Mapping[str, Any] = scored.fields
    return {
        "item_id": scored.item_id,
        "title": scored.title,
        "score": scored.score,
        "fields": {name: fields[name] for name in names if name in fields},
        "reasons": scored.reasons,
    }


def item_json(item: Item) -> dict[str, Any]:
    """As :class:`ItemOut`."""
    return {"item_id": item.item_id, "title": item.title, "fields": item.fields, "count": item.count}


def examples_json(served: Served) -> list[dict[str, Any]]:
    """As :class:`ExamplesOut`."""
    recommender, found = served.recommender, []
    for number, (history, following) in enumerate(recommender.examples, 1):
        items = [item for item in map(recommender.item, history) if item is not None]
        chosen = recommender.item(following) if following is not None else None
        found.append(
            {
                "name": f"Person {number}",
                "history": [item_json(item) for item in items],
                "next": item_json(chosen) if chosen else None,
            }
        )
    return found
