"""The middleware around the application: host, API key, limits of size, concurrency and time, metrics and logs.

It runs before the framework, so that a refused request costs next to nothing. It reads the whole body itself (within
its limits), and adds a request id and security headers to every answer.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from llmd4rec.server.errors import ApiError, overloaded
from llmd4rec.server.logs import Log
from llmd4rec.server.metrics import Metrics
from llmd4rec.server.settings import ServiceSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Keys of the scope: the body that was read, the request id, and the route that answered without the framework.
BODY, REQUEST_ID, ROUTE = "llmd4rec.body", "llmd4rec.request_id", "llmd4rec.route"
_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NO_STORE = (b"cache-control", b"no-store")
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class RequestMiddleware:
    """ASGI middleware.

    Args:
        app: the application.
        settings: limits, API keys and host names.
        metrics, log: where each request is counted and logged.
        is_page: whether a path is a file of the explorer, which needs no key.
        direct: by path the function that answers a body, without the framework, whose layers cost as much as the rest.
        to_api_error: the error to return for an exception; None for an unexpected one.
    """

    def __init__(
        self,
        app: App,
        settings: ServiceSettings,
        metrics: Metrics,
        log: Log,
        is_page: Callable[[str], bool],
        direct: Mapping[str, Callable[[bytes], Awaitable[bytes]]],
        to_api_error: Callable[[Exception], ApiError | None],
    ) -> None:
        self._app = app
        self._direct = direct
        self._to_api_error = to_api_error
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._is_page = is_page
        self._keys = [key.encode() for key in settings.api_keys]
        self._host_names = settings.host_names
        self._in_flight = 0
        metrics.in_flight.set_function(lambda: self._in_flight)
        self._ids = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(4)), itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = _read_headers(scope)
        sent_id = headers.get(b"x-request-id", b"")
        request_id = sent_id.decode() if _REQUEST_ID.fullmatch(sent_id) else next(self._ids)
        # HEAD is GET without the body, which the HTTP server leaves out: it reads the original scope.
        method = scope["method"]
        inner = {**scope, "method": "GET" if method == "HEAD" else method, REQUEST_ID: request_id}
        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                milliseconds = (time.perf_counter() - started) * 1000
                answer = [
                    *message["headers"],
                    *_SECURITY_HEADERS,
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", b"total;dur=%.3f" % milliseconds),
                ]
                if not any(name == b"cache-control" for name, _ in answer):
                    answer.append(_NO_STORE)
                message["headers"] = answer
            await send(message)

        async def refuse(error: ApiError) -> None:
            body = error.body(request_id)
            lines = error.headers(len(body))
            if error.status in (408, 413):  # what is left of the body is not read
                lines.append((b"connection", b"close"))
            await reply({"type": "http.response.start", "status": error.status, "headers": lines})
            await reply({"type": "http.response.body", "body": body})

        counted = scope["path"].startswith("/v1/")
        self._in_flight += counted
        try:
            await self._handle(inner, headers, receive, reply, counted)
        except TimeoutError:
            if not status:
                await refuse(self._timeout_error(inner))
        except _Disconnected:
            status = 499
        except Exception as error:
            known = self._to_api_error(error)
            if known is None:
                self._metrics.errors.inc()
                self._log.exception("error", error, request_id=request_id, route=_route(inner))
                known = ApiError(500, "internal", "the service failed; its log has the location")
            elif ROUTE not in inner and "route" not in inner:
                self._metrics.rejected.labels(known.code).inc()
            if not status:
                await refuse(known)
        finally:
            self._in_flight -= counted
            seconds = time.perf_counter() - started
            route = _route(inner)
            self._metrics.answered(method if method in _METHODS else "other", route, status, seconds)
            if self._settings.access_log:
                milliseconds = round(seconds * 1000, 3)
                self._log.write(
                    "request", method=method, route=route, status=status, ms=milliseconds, request_id=request_id
                )

    async def _handle(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, reply: Send, counted: bool
    ) -> None:
        self._check(scope, headers)
        if counted and self._in_flight > self._settings.concurrency:
            raise overloaded(f"{self._settings.concurrency} requests are being answered already")
        async with asyncio.timeout(self._settings.timeout) as clock:
            if scope["method"] in _SENDING:
                scope[BODY] = body = await self._body(headers, receive)
                if (limit := self._limit(scope)) != self._settings.timeout:
                    clock.reschedule(asyncio.get_running_loop().time() + limit)
                content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
                # A page of another site can send any other content type without a preflight request.
                if body and content_type != b"application/json":
                    raise ApiError(
                        415,
                        "unsupported_media_type",
                        "the body is not declared as JSON",
                        remedy="Send Content-Type: application/json.",
                    )
                direct = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
                if direct is not None:
                    scope[ROUTE] = scope["path"]
                    await _send(reply, await direct(body))
                    return
            await self._app(scope, _replay(scope.get(BODY, b""), receive), reply)

    def _timeout_error(self, scope: Scope) -> ApiError:
        if scope["method"] in _SENDING and BODY not in scope:
            return ApiError(408, "body_timeout", f"the body did not arrive within {self._settings.timeout:g} s")
        return ApiError(504, "timeout", f"no answer within {self._limit(scope):g} s", retry_after=1)

    def _limit(self, scope: Scope) -> float:
        """Seconds this request may take once its body has been read."""
        changes = scope["method"] != "GET" and scope["path"].startswith(("/v1/models", "/v1/items"))
        return self._settings.change_timeout if changes else self._settings.timeout

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Checks host name and API key.

        Raises:
            ApiError: the request is addressed to another host (421), or has no valid key (401).
        """
        path = scope["path"]
        if (
            self._host_names
            and _host_name(headers.get(b"host", b"")) not in self._host_names
            and path not in _OPEN_PATHS
        ):
            raise ApiError(
                421,
                "unknown_host",
                "the request is addressed to a host name that this service does not have",
                remedy="If the name is right, start the service with --allow-host NAME.",
            )
        if not self._keys or path in _OPEN_PATHS or self._is_page(path):
            return
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        # Every key is compared, each in constant time.
        if sum(hmac.compare_digest(given, key) for key in self._keys) == 0:
            raise ApiError(
                401, "unauthorized", "an API key is needed", remedy="Send Authorization: Bearer KEY, or X-API-Key: KEY."
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Reads the whole body.

        Raises:
            ApiError: it is too large (413).
            _Disconnected: the client has closed the connection.
        """
        limit = self._settings.max_body
        declared = int(headers.get(b"content-length", b"0")[:20])
        large = declared > limit
        if large and (b"expect" in headers or declared > 8 * limit):
            raise _too_large(limit)  # it waits for permission, or would send for long
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            part = message.get("body", b"")
            size += len(part)
            large = large or size > limit
            if not large:
                parts.append(part)
            # A client that is still sending does not read an answer yet: receive a little more and discard it.
            if not message.get("more_body", False) or size > 8 * limit:
                break
        if large:
            raise _too_large(limit)
        return parts[0] if len(parts) == 1 else b"".join(parts)


_SENDING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADERS_READ = frozenset(
    {b"host", b"content-length", b"content-type", b"authorization", b"x-api-key", b"x-request-id", b"expect"}
)


class _Disconnected(Exception):
    """The client closed the connection before it had sent its request."""


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"the body is larger than {limit:,} bytes", remedy="Send fewer histories at once."
    )


def _read_headers(scope: Scope) -> dict[bytes, bytes]:
    return {name: value for name, value in scope["headers"] if name in _HEADERS_READ}


def _host_name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _route(scope: Scope) -> str:
    """The template of the route that answered; the path itself may contain identifiers."""
    return scope.get(ROUTE) or getattr(scope.get("route"), "path", None) or "none"


async def _send(reply: Send, body: bytes) -> None:
    """Sends a JSON answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await reply({"type": "http.response.start", "status": 200, "headers": headers})
    await reply({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body once, then the server's messages (that the client has disconnected)."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_body
