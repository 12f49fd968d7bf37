"""Errors of the service: one shape of body, whatever went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson


class ApiError(Exception):
    """A request that cannot be answered as it is.

    Args:
        status: HTTP status.
        code: a word for programs.
        message: one sentence that names the field or limit.
        field: the field that is wrong, as `history[3]`.
        remedy: one sentence that says what to do next.
        details: further fields that are wrong, as `{"field": ..., "message": ...}`.
        retry_after: seconds after which to try again.
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
        """The headers that go with a body of `length` bytes."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def overloaded(what: str) -> ApiError:
    """More than the service takes at once."""
    return ApiError(503, "overloaded", what, remedy="Try again after a second, or ask fewer at once.", retry_after=1)
