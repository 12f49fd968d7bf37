"""The routes. Each reads a typed body, asks the service, and returns JSON; the rest is in `middleware`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
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
from llmd4rec.server import explorer
from llmd4rec.server.convert import answer_json, examples_json, item_json, to_event, to_filters, to_new_item, to_request
from llmd4rec.server.errors import ApiError, as_api_error, invalid_request
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import CONTENT_TYPE
from llmd4rec.server.middleware.direct import Direct
from llmd4rec.server.middleware.failures import Failures
from llmd4rec.server.middleware.headers import AnswerHeaders
from llmd4rec.server.middleware.hosts import Hosts
from llmd4rec.server.middleware.ids import RequestIds
from llmd4rec.server.middleware.keys import Keys
from llmd4rec.server.middleware.limits import Limits
from llmd4rec.server.middleware.overload import Overload
from llmd4rec.server.middleware.timing import Timing
from llmd4rec.server.middleware.types import BODY, REQUEST_ID, App
from llmd4rec.server.openapi import CHANGE, DESCRIPTION, READ, SENT, errors, with_limits
from llmd4rec.server.schema import (
    AddedOut,
    AddIn,
    AnswerOut,
    BatchIn,
    BatchOut,
    CountedOut,
    EventsIn,
    ExamplesOut,
    Health,
    ItemOut,
    ItemsOut,
    LookupIn,
    ModelsOut,
    RecommendIn,
    RemovedOut,
    RemoveIn,
    SimilarIn,
    SwapIn,
)
from llmd4rec.server.service import Reply, Served, Service


class _TypedRoute(APIRoute):
    """A route whose body pydantic reads directly from its bytes, and which can be called without the framework.

    FastAPI has it for the OpenAPI document; the middleware calls :attr:`direct`.
    """

    direct: Callable[[bytes], Awaitable[bytes]]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        endpoint: Callable[[Any], Awaitable[Response]] = self.endpoint
        body = TypeAdapter(get_type_hints(endpoint, include_extras=True)["body"])

        async def direct(sent: bytes) -> bytes:
            try:
                value = body.validate_json(sent)
            except ValidationError as error:
                raise invalid_request(
                    error.errors(include_url=False, include_context=False, include_input=False)
                ) from None
            return bytes((await endpoint(value)).body)

        async def handle(request: Request) -> Response:
            return Response(await direct(request.scope[BODY]), media_type="application/json")

        self.direct = direct
        return handle


def create_app(service: Service, log: Log) -> tuple[App, Keys]:
    """The service as an ASGI application, and its keys, which can be replaced.

    Args:
        service: what the routes ask.
        log: where requests are logged.
    """
    settings = service.settings
    # No interactive API pages: they load scripts from elsewhere.
    app = FastAPI(title="llmd4rec", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.router.route_class = _TypedRoute

    # ---- answers ------------------------------------------------------------------------------------------------
    @app.post("/v1/recommend", response_model=AnswerOut, responses=errors(400, 404, 408, 413, 415, 422))
    async def recommend(body: RecommendIn) -> Response:
        """The best next items for a history. The user need not be known: the history is the only input."""
        check_one(body, "")
        reply = await service.ask(body.model, to_request(body))
        service.count(reply.answer, len(body.history))
        return _json(answer_json(reply, body))

    @app.post("/v1/recommend/batch", response_model=BatchOut, responses=errors(400, 404, 408, 413, 415, 422))
    async def recommend_batch(body: BatchIn) -> Response:
        """The same for many histories. If one request is wrong all fail, and the error names it."""
        require_at_most(body.requests, settings.max_batch, "requests")
        for place, one in enumerate(body.requests):
            check_one(one, f"requests[{place}].")
        futures = service.ask_all([(one.model, to_request(one)) for one in body.requests])
        replies = await asyncio.gather(*futures, return_exceptions=True)
        answers = []
        for place, (one, reply) in enumerate(zip(body.requests, replies, strict=True)):
            if isinstance(reply, LLMD4RecError):
                raise ApiError(422, "invalid", reply.what, field=f"requests[{place}]", remedy=reply.remedy) from reply
            if isinstance(reply, BaseException):
                raise reply
            service.count(reply.answer, len(one.history))
            answers.append(answer_json(reply, one))
        return _json({"answers": answers})

    @app.post("/v1/similar", response_model=AnswerOut, responses=errors(400, 404, 408, 413, 415, 422))
    async def similar(body: SimilarIn) -> Response:
        """Items that are chosen in the same situations: those with the most similar embeddings."""
        require_k(body.k, "k")
        filters = to_filters(body.filters)

        def work(served: Served) -> Reply:
            if served.recommender.item(body.item_id) is None:
                raise ApiError(404, "item_not_found", "the catalogue has no such item", field="item_id")
            return Reply(served.recommender.similar(body.item_id, body.k, filters=filters), served)

        return _json(answer_json(await service.look(work), None))

    # ---- the catalogue ------------------------------------------------------------------------------------------
    @app.get("/v1/items", response_model=ItemsOut, responses=READ)
    async def search(
        q: Annotated[str, Query(max_length=200, description="Words of the title, or an identifier.")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Items with these words in the title, also beginnings of words; without words the most frequent items."""
        return _json(
            {
                "items": [
                    item_json(item) for item in await service.look(lambda served: served.recommender.search(q, limit))
                ]
            }
        )

    @app.post("/v1/items/lookup", response_model=ItemsOut, responses=SENT)
    async def lookup(body: LookupIn) -> Response:
        """The items with these identifiers, in the same order; unknown ones are left out."""
        require_at_most(body.ids, settings.max_history, "ids")
        recommender = service.recommender
        return _json({"items": [item_json(item) for item in map(recommender.item, body.ids) if item is not None]})

    @app.post("/v1/items", response_model=AddedOut, responses=CHANGE)
    async def add(body: AddIn) -> Response:
        """Adds items by their texts, or changes items. Lasts until another export is loaded."""
        service.require_changes()
        require_at_most(body.items, settings.max_batch, "items")
        items = [to_new_item(item) for item in body.items]
        report = await service.add(items)
        return _json({"added": report.added, "replaced": report.replaced, **now()})

    @app.post("/v1/items/remove", response_model=RemovedOut, responses=CHANGE)
    async def remove(body: RemoveIn) -> Response:
        """Removes items. They are still understood in histories, but no longer recommended."""
        service.require_changes()
        require_at_most(body.ids, settings.max_batch, "ids")
        report = await service.remove(body.ids)
        return _json({"removed": report.removed, "unknown": report.unknown, **now()})

    @app.post("/v1/events", response_model=CountedOut, responses=CHANGE)
    async def observe(body: EventsIn) -> Response:
        """Counts what users have chosen into the memory; answers know it at once. Lasts until another export is
        loaded. If one event is wrong none is counted."""
        service.require_changes()
        require_at_most(body.events, settings.max_batch, "events")
        for place, event in enumerate(body.events):
            require_at_most(event.history, settings.max_history, f"events[{place}].history")
        await service.observe([to_event(event) for event in body.events])
        return _json({"counted": len(body.events), "revision": service.served.revision})

    @app.get("/v1/items/{item_id:path}", response_model=ItemOut, responses=errors(404, 422))
    async def item(item_id: Annotated[str, Path(max_length=LONGEST_ID)]) -> Response:
        """One item."""
        found = service.recommender.item(item_id)
        if found is None:
            raise ApiError(404, "item_not_found", "the catalogue has no such item", field="item_id")
        return _json(item_json(found))

    # ---- models -------------------------------------------------------------------------------------------------
    @app.get("/v1/models", response_model=ModelsOut, responses=errors())
    async def models() -> Response:
        """What is served, the fields to filter by, and the exports that can be loaded."""
        served, available = await service.look(
            lambda served: (service.description(served.recommender), service.available())
        )
        limits = settings.model_dump(include=set(ModelsOut.model_fields["limits"].annotation.model_fields))  # type: ignore[union-attr]
        return _json(
            {
                "served": served.model_dump(),
                "revision": service.served.revision,
                "available": available,
                "changes_allowed": settings.changes_allowed,
                "limits": limits,
            }
        )

    @app.post("/v1/models/swap", response_model=ModelsOut, responses=CHANGE)
    async def swap(body: SwapIn) -> Response:
        """Loads another export and serves it. Requests in progress are answered by the old one; none is lost."""
        service.require_changes()
        await service.swap(body.name)
        return await models()

    @app.get("/v1/examples", response_model=ExamplesOut, responses=errors())
    async def examples() -> Response:
        """Example histories of the data set, where the export has some."""
        return _json({"examples": await service.look(examples_json)})

    # ---- operation ----------------------------------------------------------------------------------------------
    @app.get("/healthz", response_model=Health, responses=errors())
    async def healthz() -> Response:
        """The process is running."""
        return _json({"status": "ok"})

    @app.get("/readyz", response_model=Health, responses=errors())
    async def readyz() -> Response:
        """The service takes requests; 503 once it has been told to stop."""
        if service.draining:
            raise ApiError(503, "draining", "the service is stopping", retry_after=1)
        return _json({"status": "ready"})

    @app.get("/metrics", responses={**errors(), 200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Counters and latency histograms for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    pages = explorer.pages()

    @app.get("/", include_in_schema=False)
    @app.get("/explorer/{name}", include_in_schema=False)
    async def page(request: Request) -> Response:
        found = pages.get(request.scope["path"])
        if found is None:
            raise ApiError(404, "path_not_found", "there is no such path", remedy="GET /openapi.json lists them.")
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers={"etag": found.tag, "cache-control": "no-cache"})
        return Response(found.content, media_type=found.type, headers={"etag": found.tag, "cache-control": "no-cache"})

    # ---- limits -------------------------------------------------------------------------------------------------
    def now() -> dict[str, Any]:
        return {"items": service.recommender.info.items, "revision": service.served.revision}

    def check_one(body: RecommendIn, where: str) -> None:
        require_at_most(body.history, settings.max_history, f"{where}history")
        require_k(body.k, f"{where}k")
        known = service.recommender.catalogue
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
            raise ApiError(
                422, "invalid", f"k is larger than {settings.max_k}, the maximum of this service", field=field
            )

    def require_at_most(values: Sequence[object], limit: int, field: str) -> None:
        if len(values) > limit:
            raise ApiError(
                422,
                "invalid",
                f"there are {len(values):,} entries; the maximum is {limit:,}",
                field=field,
                remedy="Send fewer.",
            )

    # ---- errors -------------------------------------------------------------------------------------------------
    async def error_response(request: Request, error: Exception) -> Response:
        known = as_api_error(error)
        assert known is not None  # this is called for such errors only
        content = known.body(request.scope[REQUEST_ID])
        response = Response(content, known.status)
        response.raw_headers = known.headers(len(content))
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})  # Allow, of 405
        return response

    for kind in (ApiError, LLMD4RecError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, error_response)
    document = app.openapi
    app.openapi = lambda: with_limits(document(), settings)  # type: ignore[method-assign]
    direct = {route.path: route.direct for route in app.routes if isinstance(route, _TypedRoute) and route.body_field}
    # From the inside to the outside.
    limited = Limits(Direct(app, direct), settings, service.metrics)
    keys = Keys(limited, settings.api_keys, pages.__contains__)
    answering = Failures(Hosts(keys, settings.host_names), service.metrics, log, as_api_error)

    def draining() -> bool:
        return service.draining

    headed = AnswerHeaders(answering, draining)
    counted = RequestIds(Timing(headed, service.metrics, log, settings.access_log))
    return Overload(counted, limited.full, draining, settings.concurrency, service.metrics), keys


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
