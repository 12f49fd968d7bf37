"""Limits and permissions of the service; `/v1/models` and the OpenAPI document show them."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ServiceSettings(BaseModel):
    """Limits and permissions of a running service.

    Attributes:
        host: address to listen on.
        max_body: maximum bytes of a request's body.
        max_history: maximum items of one history. The model reads only its last few dozen.
        max_k: maximum items to recommend in one answer.
        max_batch: maximum histories of a batch request, and maximum items added or removed, or events counted, at once.
        concurrency: maximum requests answered at the same time; more are refused with 503.
        queue: maximum histories that wait for the encoder; more are refused with 503.
        reasons_queue: the same for requests with `explain`, which have an encoder call of their own: each item of a
            history counts as one more.
        micro_batch: maximum histories in one call of the encoder.
        timeout: seconds a request may take; also seconds for its headers to arrive.
        change_timeout: the same for changes: encoding texts or loading a model takes longer.
        keep_alive: seconds an idle connection is kept: longer than load balancers keep theirs, so that they close it.
        models: folder whose exports can be loaded by name while serving; None: none.
        api_keys: keys of which one must be sent, each alone or followed by a space and its scopes, as
            `read,metrics`; empty: no key is needed.
        allow_changes: requests can add and remove items or load another export without a key, if only this machine can
            reach the service. Off by default: behind a proxy on this machine everybody's requests come from here.
        allowed_hosts: host names that requests may be addressed to; empty: any. On this machine's own address only its
            own names are answered. Otherwise a page of another site, opened here, could read the service by pointing
            its name at 127.0.0.1.
        access_log: write a line for every request.
        drain: seconds in which requests are still taken after a signal to stop, while `/readyz` answers 503.
        stop_timeout: seconds in which requests in progress are finished after that; what is left then is cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    host: str = "127.0.0.1"
    max_body: int = Field(1 << 20, ge=1024)
    max_history: int = Field(1000, ge=1)
    max_k: int = Field(200, ge=1)
    max_batch: int = Field(256, ge=1)
    concurrency: int = Field(512, ge=1)
    queue: int = Field(4096, ge=1)
    reasons_queue: int = Field(1024, ge=1)
    micro_batch: int = Field(64, ge=1)
    timeout: float = Field(10.0, gt=0)
    change_timeout: float = Field(300.0, gt=0)
    keep_alive: float = Field(75.0, gt=0)
    models: Path | None = None
    api_keys: tuple[str, ...] = Field((), repr=False)
    allow_changes: bool = False
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = True
    drain: float = Field(0.0, ge=0)
    stop_timeout: float = Field(20.0, gt=0)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def changes_allowed(self) -> bool:
        """Whether requests can add or remove items or load another export."""
        return bool(self.api_keys) or (self.allow_changes and self.local)

    @property
    def host_names(self) -> frozenset[str]:
        """Host names that requests may be addressed to; empty: all."""
        if self.allowed_hosts:
            return frozenset(name.lower() for name in self.allowed_hosts)
        return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()}) if self.local else frozenset()
