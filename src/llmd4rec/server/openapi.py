"""The OpenAPI document: the description of the service, its error statuses and its limits."""

from __future__ import annotations

from typing import Any

from llmd4rec.server.schema import ErrorBody
from llmd4rec.server.settings import ServiceSettings

DESCRIPTION = """Recommends the next items for a history of items, with a sequential recommender.

Every answer with an error status has this format: `{"error": {"code", "message", "request_id", "field", "remedy"}}`.
Histories are read and forgotten; nothing of them is kept or logged. Events that are sent to be counted change counts,
and nothing else is kept of them."""

_STATUSES: dict[int, str] = {
    400: "The body is not valid JSON.",
    401: "No API key, or a wrong one.",
    403: "Not allowed here, or not with this key.",
    404: "Not found.",
    405: "The path exists, but not for this method.",
    408: "The body did not arrive in time.",
    409: "Another change is in progress.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    421: "Addressed to another host name.",
    422: "A field is wrong; `field` names it.",
    500: "The service failed.",
    503: "Overloaded: try again after `Retry-After` seconds.",
    504: "No answer in time.",
}


def errors(*more: int) -> dict[int | str, dict[str, Any]]:
    """The error statuses of a route: those that every route has, and some more."""
    wanted = sorted({401, 403, 421, 500, 503, 504, *more})
    return {status: {"model": ErrorBody, "description": _STATUSES[status]} for status in wanted}


READ, SENT = errors(422), errors(400, 408, 413, 415, 422)
CHANGE = errors(400, 403, 404, 408, 409, 413, 415, 422)


def with_limits(document: dict[str, Any], limits: ServiceSettings) -> dict[str, Any]:
    """The OpenAPI document with the limits that this service was started with."""
    schemas = document["components"]["schemas"]
    schemas["RecommendIn"]["properties"]["history"]["maxItems"] = limits.max_history
    schemas["LookupIn"]["properties"]["ids"]["maxItems"] = limits.max_history
    schemas["RemoveIn"]["properties"]["ids"]["maxItems"] = limits.max_batch
    schemas["BatchIn"]["properties"]["requests"]["maxItems"] = limits.max_batch
    schemas["AddIn"]["properties"]["items"]["maxItems"] = limits.max_batch
    schemas["EventsIn"]["properties"]["events"]["maxItems"] = limits.max_batch
    schemas["EventIn"]["properties"]["history"]["maxItems"] = limits.max_history
    for name in ("RecommendIn", "SimilarIn"):
        schemas[name]["properties"]["k"]["maximum"] = limits.max_k
    if limits.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
