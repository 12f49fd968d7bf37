"""Errors of the service: all have the same format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llmd4rec.errors import LLMD4RecError
from llmd4rec.server.schema import RENAMED_FIELDS


class ApiError(Exception):
    """A request that cannot be answered as it is.

    Args:
        status: HTTP status.
        code: a constant for programs.
        message: one sentence that names the field or limit.
        field: the field that is wrong, as `history[3]`.
        remedy: one sentence that says what to do next.
        details: further fields that are wrong, as `{"field": ..., "message": ...}`.
        retry_after: seconds after which to try again.

    Attributes:
        closes: what is left of the request is not read, so the connection ends with the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        remedy: str = "",
        details: Sequence[dict[str, str]] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.remedy = remedy
        self.details = list(details)
        self.retry_after = retry_after
        self.closes = status in (408, 413)

    def body(self, request_id: str) -> bytes:
        """The JSON of :class:`~llmd4rec.server.schema.ErrorBody`."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, "request_id": request_id}
        if self.field is not None:
            error["field"] = self.field
        if self.remedy:
            error["remedy"] = self.remedy
        if self.details:
            error["details"] = self.details
        return orjson.dumps({"error": error})

    def headers(self, length: int) -> list[tuple[bytes, bytes]]:
        """The headers for a body of `length` bytes."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def overloaded(what: str) -> ApiError:
    """The error for more requests than the service takes at once."""
    return ApiError(
        503, "overloaded", what, remedy="Try again after a second, or send fewer requests at once.", retry_after=1
    )


def as_api_error(error: Exception) -> ApiError | None:
    """The error to return for an exception; None for an unexpected one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LLMD4RecError):
        return ApiError(422, "invalid", error.what, remedy=error.remedy)
    if isinstance(error, RequestValidationError):
        return invalid_request(error.errors())
    if not isinstance(error, HTTPException):
        return None
    if error.status_code == 404:
        return ApiError(404, "path_not_found", "there is no such path", remedy="GET /openapi.json lists them.")
    if error.status_code == 405:
        return ApiError(405, "method_not_allowed", "the path exists, but not for this method")
    return ApiError(error.status_code, "http", str(error.detail))


def invalid_request(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """Pydantic's errors as one error that names the first field; the values that were sent are not repeated."""
    if problems[0]["type"] == "json_invalid":
        # Its message gives the position and quotes nothing.
        return ApiError(
            400, "invalid_json", f"the body is not valid JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}"
        )
    found = {_field(problem["loc"]): _message(problem) for problem in reversed(problems)}
    details = [{"field": field, "message": message} for field, message in reversed(found.items())][:10]
    return ApiError(
        422, "invalid", details[0]["message"], field=details[0]["field"], details=details if len(details) > 1 else ()
    )


def _field(location: Sequence[str | int]) -> str:
    """`("filters", "where", "brand", 2)` → `filters.where.brand[2]`."""
    parts = [part for part in location if part not in ("query", "path", "body", "[key]")]
    if parts and parts[-1] in ("str", "bool", "int", "float", "constrained-str"):  # the type that was tried
        parts.pop()
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.lstrip(".") or "body"


def _message(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return RENAMED_FIELDS.get(problem["loc"][-1], "there is no such field")
    return str(problem["msg"])
