"""The routes. Each reads its typed request, asks the service, and writes JSON; everything else stands in `gate`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

import orjson
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from llmd4rec import __version__
from llmd4rec.data.ingest.limits import LONGEST_ID
from llmd4rec.errors import LLMD4RecError
from llmd4rec.inference.types import Filters, Item, NewItem, Scored
from llmd4rec.inference.types import Request as Wanted
from llmd4rec.server import explorer
from llmd4rec.server.errors import ApiError
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import CONTENT_TYPE
from llmd4rec.server.middleware import BODY, REQUEST_ID, App, Gate
from llmd4rec.server.schema import (
    AddedOut,
    AddIn,
    AnswerOut,
    BatchIn,
    BatchOut,
    ErrorBody,
    ExamplesOut,
    FiltersIn,
    Health,
    ItemOut,
    ItemsOut,
    LookupIn,
    ModelsOut,
    NewItemIn,
    RecommendIn,
    RemovedOut,
    RemoveIn,
    SimilarIn,
    SwapIn,
)
from llmd4rec.server.service import Reply, Served, Service

DESCRIPTION = """Next items for a history of items, from a sequential recommender that a language model has taught.

Every answer that is no success has one shape: `{"error": {"code", "message", "request_id", "field", "remedy"}}`.
Histories are read and forgotten; nothing of them is kept or logged."""

_ERRORS: dict[int, str] = {
    400: "The body is no JSON.",
    401: "No API key, or a wrong one.",
    403: "Not allowed here.",
    404: "There is no such thing.",
    405: "The path exists, for another method.",
    408: "The body did not come in time.",
    409: "Another change is under way.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    421: "Addressed to another name.",
    422: "A field is wrong; `field` names it.",
    500: "The service failed.",
    503: "Too much at once: try again after `Retry-After` seconds.",
    504: "No answer in time.",
}


def _errors(*more: int) -> dict[int | str, dict[str, Any]]:
    wanted = sorted({401, 421, 500, 503, 504, *more})
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in wanted}


_READ, _SENT = _errors(422), _errors(400, 408, 413, 415, 422)
_CHANGE = _errors(400, 403, 404, 408, 409, 413, 415, 422)


class _Typed(APIRoute):
    """A route whose body pydantic reads straight from its bytes, and which needs no framework to be called.

    FastAPI knows it for the document; :attr:`direct` is what the gate calls.
    """

    direct: Callable[[bytes], Awaitable[bytes]]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint: Callable[[Any], Awaitable[Response]] = self.endpoint
        body = TypeAdapter(get_type_hints(endpoint, include_extras=True)["body"])

        async def direct(sent: bytes) -> bytes:
            try:
                value = body.validate_json(sent)
            except ValidationError as error:
                raise _invalid(error.errors(include_url=False, include_context=False, include_input=False)) from None
            return bytes((await endpoint(value)).body)

        async def handle(request: Request) -> Response:
            return Response(await direct(request.scope[BODY]), media_type="application/json")

        self.direct = direct
        return handle


def create_app(service: Service, log: Log) -> App:
    """The service as an ASGI application.

    Args:
        service: what answers.
        log: where requests are written down.
    """
    settings = service.settings
    # No interactive documents: they load scripts from elsewhere. The explorer shows what the service does.
    app = FastAPI(title="llmd4rec", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.router.route_class = _Typed

    # ---- answers ------------------------------------------------------------------------------------------------
    @app.post("/v1/recommend", response_model=AnswerOut, responses=_errors(400, 404, 408, 413, 415, 422))
    async def recommend(body: RecommendIn) -> Response:
        """The best next items for a history. Nobody needs to be known: the history is all there is to know."""
        check_one(body, "")
        reply = await service.ask(body.model, _wanted(body))
        service.count(reply.answer, len(body.history))
        return _json(_answer(reply, body))

    @app.post("/v1/recommend/batch", response_model=BatchOut, responses=_errors(400, 404, 408, 413, 415, 422))
    async def recommend_batch(body: BatchIn) -> Response:
        """The same for many histories; one that is wrong fails them all, and the error names it."""
        require_at_most(body.requests, settings.max_batch, "requests")
        for place, one in enumerate(body.requests):
            check_one(one, f"requests[{place}].")
        futures = service.ask_all([(one.model, _wanted(one)) for one in body.requests])
        replies = await asyncio.gather(*futures, return_exceptions=True)
        answers = []
        for place, (one, reply) in enumerate(zip(body.requests, replies, strict=True)):
            if isinstance(reply, LLMD4RecError):
                raise ApiError(422, "invalid", reply.what, field=f"requests[{place}]", remedy=reply.remedy) from reply
            if isinstance(reply, BaseException):
                raise reply
            service.count(reply.answer, len(one.history))
            answers.append(_answer(reply, one))
        return _json({"answers": answers})

    @app.post("/v1/similar", response_model=AnswerOut, responses=_errors(400, 404, 408, 413, 415, 422))
    async def similar(body: SimilarIn) -> Response:
        """Items that are chosen in the same situations as this one."""
        require_k(body.k, "k")
        filters = _filters(body.filters)

        def work(served: Served) -> Reply:
            if served.engine.item(body.item_id) is None:
                raise ApiError(404, "no_item", "the catalogue has no such item", field="item_id")
            return Reply(served.engine.similar(body.item_id, body.k, filters=filters), served)

        return _json(_answer(await service.look(work), None))

    # ---- the catalogue ------------------------------------------------------------------------------------------
    @app.get("/v1/items", response_model=ItemsOut, responses=_READ)
    async def search(
        q: Annotated[str, Query(max_length=200, description="Words of the title, or an identifier.")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Items whose title has these words, also the beginnings of words; without words those most often chosen."""
        return _json(
            {"items": [_item(item) for item in await service.look(lambda served: served.engine.search(q, limit))]}
        )

    @app.post("/v1/items/lookup", response_model=ItemsOut, responses=_SENT)
    async def lookup(body: LookupIn) -> Response:
        """The items with these identifiers, in their order; unknown ones are left out."""
        require_at_most(body.ids, settings.max_history, "ids")
        engine = service.engine
        return _json({"items": [_item(item) for item in map(engine.item, body.ids) if item is not None]})

    @app.post("/v1/items", response_model=AddedOut, responses=_CHANGE)
    async def add(body: AddIn) -> Response:
        """Adds items by their texts; of those that are there, changes what is given. Until another export is loaded."""
        service.require_changes()
        require_at_most(body.items, settings.max_batch, "items")
        items = [_new_item(item) for item in body.items]
        report = await service.add(items)
        return _json({"added": report.added, "replaced": report.replaced, "items": service.engine.info.items})

    @app.post("/v1/items/remove", response_model=RemovedOut, responses=_CHANGE)
    async def remove(body: RemoveIn) -> Response:
        """Removes items. In histories they still count; they do not come back."""
        service.require_changes()
        require_at_most(body.ids, settings.max_batch, "ids")
        report = await service.remove(body.ids)
        return _json({"removed": report.removed, "unknown": report.unknown, "items": service.engine.info.items})

    @app.get("/v1/items/{item_id:path}", response_model=ItemOut, responses=_errors(404, 422))
    async def item(item_id: Annotated[str, Path(max_length=LONGEST_ID)]) -> Response:
        """One item."""
        found = service.engine.item(item_id)
        if found is None:
            raise ApiError(404, "no_item", "the catalogue has no such item", field="item_id")
        return _json(_item(found))

    # ---- models -------------------------------------------------------------------------------------------------
    @app.get("/v1/models", response_model=ModelsOut, responses=_errors())
    async def models() -> Response:
        """What is served, what it can be filtered by, and what else could be loaded."""
        served, available = await service.look(lambda served: (service.description(served.engine), service.available()))
        limits = settings.model_dump(include=set(ModelsOut.model_fields["limits"].annotation.model_fields))  # type: ignore[union-attr]
        return _json(
            {
                "served": served.model_dump(),
                "available": available,
                "may_change": settings.may_change,
                "limits": limits,
            }
        )

    @app.post("/v1/models/swap", response_model=ModelsOut, responses=_CHANGE)
    async def swap(body: SwapIn) -> Response:
        """Loads another export and serves it. Requests under way are answered by the old one; none is dropped."""
        service.require_changes()
        await service.swap(body.name)
        return await models()

    @app.get("/v1/examples", response_model=ExamplesOut, responses=_errors())
    async def examples() -> Response:
        """Histories of the data set to try, where the export carries some."""
        return _json({"examples": await service.look(_examples)})

    # ---- operation ----------------------------------------------------------------------------------------------
    @app.get("/healthz", response_model=Health, responses=_errors())
    async def healthz() -> Response:
        """The process lives."""
        return _json({"status": "ok"})

    @app.get("/readyz", response_model=Health, responses=_errors())
    async def readyz() -> Response:
        """It takes requests; 503 once it has been told to stop."""
        if service.draining:
            raise ApiError(503, "draining", "the service is about to stop", retry_after=1)
        return _json({"status": "ready"})

    @app.get("/metrics", responses={**_errors(), 200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Counters and latency histograms for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    pages = explorer.pages()

    @app.get("/", include_in_schema=False)
    @app.get("/explorer/{name}", include_in_schema=False)
    async def page(request: Request) -> Response:
        found = pages.get(request.scope["path"])
        if found is None:
            raise ApiError(404, "no_path", "there is no such path", remedy="GET /openapi.json lists them.")
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers={"etag": found.tag, "cache-control": "no-cache"})
        return Response(found.content, media_type=found.type, headers={"etag": found.tag, "cache-control": "no-cache"})

    # ---- limits -------------------------------------------------------------------------------------------------
    def check_one(body: RecommendIn, where: str) -> None:
        require_at_most(body.history, settings.max_history, f"{where}history")
        require_k(body.k, f"{where}k")
        known = service.engine.catalogue
        for place, name in enumerate(body.fields or ()):
            if name not in ("item_id", "title"):  # which always come
                try:
                    known.field(name)
                except LLMD4RecError as error:
                    raise ApiError(
                        422, "invalid", error.what, field=f"{where}fields[{place}]", remedy=error.remedy
                    ) from error

    def require_k(k: int, field: str) -> None:
        if k > settings.max_k:
            raise ApiError(422, "invalid", f"at most {settings.max_k} items can be asked for", field=field)

    def require_at_most(values: Sequence[object], most: int, field: str) -> None:
        if len(values) > most:
            raise ApiError(
                422,
                "invalid",
                f"{len(values):,} entries; at most {most:,} are taken",
                field=field,
                remedy="Send fewer.",
            )

    # ---- errors -------------------------------------------------------------------------------------------------
    async def shown(request: Request, error: Exception) -> Response:
        known = _as_api_error(error)
        assert known is not None  # only for such errors is this called
        content = known.body(request.scope[REQUEST_ID])
        response = Response(content, known.status)
        response.raw_headers = known.headers(len(content))
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})  # Allow, of 405
        return response

    for kind in (ApiError, LLMD4RecError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, shown)
    document = app.openapi
    app.openapi = lambda: _with_limits(document(), service)  # type: ignore[method-assign]
    direct = {route.path: route.direct for route in app.routes if isinstance(route, _Typed) and route.body_field}
    return Gate(app, settings, service.metrics, log, pages.__contains__, direct, _as_api_error)


# ---- in ---------------------------------------------------------------------------------------------------------
def _new_item(item: NewItemIn) -> NewItem:
    # A title of null clears, as a field of null does; one that is left out stays.
    title = "" if item.title is None and "title" in item.model_fields_set else item.title
    return NewItem(item.item_id, title, item.fields, item.text, item.vector)


def _wanted(body: RecommendIn) -> Wanted:
    return Wanted(
        history=body.history,
        k=body.k,
        seen=body.seen,
        exclude=body.exclude,
        filters=_filters(body.filters),
        diversity=body.diversity,
        explain=body.explain,
        popular_in=body.popular_in,
    )


def _filters(filters: FiltersIn | None) -> Filters | None:
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


# ---- out --------------------------------------------------------------------------------------------------------
def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _answer(reply: Reply, body: RecommendIn | None) -> dict[str, Any]:
    """As :class:`AnswerOut`. Long texts come only when they are asked for: they would be most of the answer."""
    answer, served = reply.answer, reply.served
    wanted = served.short if body is None or body.fields is None else body.fields
    return {
        "items": [_scored(scored, wanted) for scored in answer.items],
        "unknown": answer.unknown,
        "fallback": answer.fallback,
        "considered": answer.considered,
        "model": served.digest,
    }


def _scored(scored: Scored, wanted: Sequence[str]) -> dict[str, Any]:
    fields: Mapping[str, Any] = scored.fields
    return {
        "item_id": scored.item_id,
        "title": scored.title,
        "score": scored.score,
        "fields": {name: fields[name] for name in wanted if name in fields},
        "because": scored.because,
    }


def _item(item: Item) -> dict[str, Any]:
    return {"item_id": item.item_id, "title": item.title, "fields": item.fields, "count": item.count}


def _examples(served: Served) -> list[dict[str, Any]]:
    """As :class:`ExamplesOut`."""
    engine, found = served.engine, []
    for number, (history, then) in enumerate(engine.examples, 1):
        items = [item for item in map(engine.item, history) if item is not None]
        chosen = engine.item(then) if then is not None else None
        found.append(
            {
                "name": f"Person {number}",
                "history": [_item(item) for item in items],
                "next": _item(chosen) if chosen else None,
            }
        )
    return found


def _with_limits(document: dict[str, Any], service: Service) -> dict[str, Any]:
    """The OpenAPI document with the limits this service was started with."""
    schemas, limits = document["components"]["schemas"], service.settings
    schemas["RecommendIn"]["properties"]["history"]["maxItems"] = limits.max_history
    schemas["LookupIn"]["properties"]["ids"]["maxItems"] = limits.max_history
    schemas["RemoveIn"]["properties"]["ids"]["maxItems"] = limits.max_batch
    schemas["BatchIn"]["properties"]["requests"]["maxItems"] = limits.max_batch
    schemas["AddIn"]["properties"]["items"]["maxItems"] = limits.max_batch
    for name in ("RecommendIn", "SimilarIn"):
        schemas[name]["properties"]["k"]["maximum"] = limits.max_k
    if limits.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


# ---- errors -----------------------------------------------------------------------------------------------------
def _as_api_error(error: Exception) -> ApiError | None:
    """The error to show for an exception; None where nobody expected it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LLMD4RecError):
        return ApiError(422, "invalid", error.what, remedy=error.remedy)
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if not isinstance(error, HTTPException):
        return None
    if error.status_code == 404:
        return ApiError(404, "no_path", "there is no such path", remedy="GET /openapi.json lists them.")
    if error.status_code == 405:
        return ApiError(405, "wrong_method", "the path is there, but not for this method")
    return ApiError(error.status_code, "http", str(error.detail))


def _invalid(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """What pydantic found, as one error that names the first field; the values that were sent are not repeated."""
    if problems[0]["type"] == "json_invalid":
        # Its message says where, and quotes nothing.
        return ApiError(400, "no_json", f"the body is no JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}")
    found = {_field(problem["loc"]): problem["msg"] for problem in reversed(problems)}
    details = [{"field": field, "message": message} for field, message in reversed(found.items())][:10]
    return ApiError(
        422, "invalid", details[0]["message"], field=details[0]["field"], details=details if len(details) > 1 else ()
    )


def _field(location: Sequence[str | int]) -> str:
    """`("filters", "where", "brand", 2)` → `filters.where.brand[2]`."""
    parts = [part for part in location if part not in ("query", "path", "body", "[key]")]
    if parts and parts[-1] in ("str", "bool", "int", "float", "constrained-str"):  # which of several types was tried
        parts.pop()
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.lstrip(".") or "body"
