"""The metrics of the service, in Prometheus' text format."""

from __future__ import annotations

import gc
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

#: Upper edges of histogram buckets in seconds: fine where answers are expected, coarse above.
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters and histograms of one service; a registry of its own, so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        #: children of labelled metrics; looking one up costs more than counting
        self._routes: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._requests = Counter(
            "llmd4rec_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "llmd4rec_http_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        #: this gauge and `waiting` call a function when they are read
        self.in_flight = Gauge("llmd4rec_http_requests_in_flight", "Requests being answered.", registry=registry)
        self.rejected = Counter(
            "llmd4rec_http_rejected",
            "Requests refused before they reached a route, by reason.",
            ("reason",),
            registry=registry,
        )
        self.errors = Counter("llmd4rec_errors", "Unexpected errors (status 500).", registry=registry)
        self.histories = Counter("llmd4rec_histories", "Histories answered.", registry=registry)
        self.items = Counter("llmd4rec_history_items", "Items in the histories answered.", registry=registry)
        self.unknown = Counter(
            "llmd4rec_history_items_unknown", "Of these, items that the catalogue does not have.", registry=registry
        )
        self.fallback = Counter(
            "llmd4rec_histories_fallback",
            "Histories without a known item, answered with what is chosen most.",
            registry=registry,
        )
        self.events = Counter("llmd4rec_events", "Events counted into the memory.", registry=registry)
        self.empty = Counter("llmd4rec_answers_empty", "Histories for which there was no candidate.", registry=registry)
        self.batch = Histogram(
            "llmd4rec_batch_histories",
            "Histories in one call of the encoder.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.compute = Histogram(
            "llmd4rec_batch_seconds", "One call: encoding, scoring, choosing.", buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge(
            "llmd4rec_queue_histories", "Histories that are waiting for the encoder.", registry=registry
        )
        self.swaps = Counter(
            "llmd4rec_model_swaps", "Changes from one export to another.", ("outcome",), registry=registry
        )
        self.catalogue = Gauge("llmd4rec_catalogue_items", "Items that can be recommended.", registry=registry)
        self.changes = Gauge(
            "llmd4rec_catalogue_changes",
            "Changes to the catalogue and the memory since the export was loaded, the number in `revision`.",
            registry=registry,
        )
        self._model = Gauge(
            "llmd4rec_model_info",
            "The model that is served; always 1.",
            ("name", "stage", "fingerprint"),
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        key = (method, route, status)
        children = self._routes.get(key)
        if children is None:
            children = self._requests.labels(*map(str, key)), self._seconds.labels(route)
            self._routes[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def serves(self, name: str, stage: str, fingerprint: str, items: int, changes: int) -> None:
        """Records which model is served."""
        self._model.clear()
        self._model.labels(name, stage, fingerprint).set(1)
        self.catalogue.set(items)
        self.changes.set(changes)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


def freeze_loaded_objects() -> None:
    """Excludes all loaded objects from garbage collection: walking over them costs milliseconds each time."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
