"""What the service allows: one frozen description, shown by `/v1/models` and by the OpenAPI document."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ServiceSettings(BaseModel):
    """Limits and permissions of a running service.

    Attributes:
        host: address that is listened on.
        max_body: most bytes of a request's body.
        max_history: most items of one history. The model reads its last few dozen anyway.
        max_k: most items asked for at once.
        max_batch: most histories of a batch request, and most items added or removed at once.
        concurrency: most requests answered at the same time; more are sent away with 503.
        queue: most histories that wait for the encoder; more are sent away with 503.
        micro_batch: most histories in one call of the encoder.
        timeout: seconds a request may take, and before that its head.
        change_timeout: the same for changes: encoding texts or loading a model takes longer.
        models: folder whose exports may be loaded by name while serving; None: none may.
        api_keys: keys of which one must be sent; none: no key is needed.
        changes: requests may add and remove items or load another model without a key, if only this machine reaches the
            service. Not so by default: behind a proxy on this machine everybody's requests come from here.
        hosts: names a request may be addressed to; empty: any. On this machine's own address only its own names are
            answered, or a page of another site, opened here, could read the service by pointing its name at 127.0.0.1.
        access_log: a line for every request.
        drain: seconds that requests are still taken after a signal to stop, with `/readyz` saying 503.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    host: str = "127.0.0.1"
    max_body: int = Field(1 << 20, ge=1024)
    max_history: int = Field(1000, ge=1)
    max_k: int = Field(200, ge=1)
    max_batch: int = Field(256, ge=1)
    concurrency: int = Field(512, ge=1)
    queue: int = Field(4096, ge=1)
    micro_batch: int = Field(64, ge=1)
    timeout: float = Field(10.0, gt=0)
    change_timeout: float = Field(300.0, gt=0)
    models: Path | None = None
    api_keys: tuple[str, ...] = Field((), repr=False)
    changes: bool = False
    hosts: tuple[str, ...] = ()
    access_log: bool = True
    drain: float = Field(0.0, ge=0)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def may_change(self) -> bool:
        """Whether requests may add or remove items or load another model."""
        return bool(self.api_keys) or (self.changes and self.local)

    @property
    def names(self) -> frozenset[str]:
        """Host names that are answered; empty: all."""
        if self.hosts:
            return frozenset(name.lower() for name in self.hosts)
        return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()}) if self.local else frozenset()
