"""``/metrics`` for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flask import Blueprint, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from manager.models.model import Model, State
from manager.relay.forward import Outcome

if TYPE_CHECKING:
    from routes.services import Services

# Seconds. From a cached embedding to a long answer of a large model on a small card.
_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters that requests move. ``model`` is empty for names that are no model's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = Counter(
            "llm_manager_requests",
            "Requests by model and status; 499 is a client that left.",
            ["model", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "llm_manager_request_seconds",
            "From the request's arrival to its answer's end.",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._first_byte = Histogram(
            "llm_manager_first_byte_seconds",
            "From the request's arrival to the first byte of its answer.",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "llm_manager_tokens",
            "Tokens by model and kind: prompt (cached ones included), cached, completion.",
            ["model", "kind"],
            registry=self.registry,
        )

        self._evictions = Counter(
            "llm_manager_evictions",
            "Models that were stopped to make room for another.",
            ["model"],
            registry=self.registry,
        )
        self._waits = Histogram(
            "llm_manager_room_wait_seconds",
            "How long a start that found no room waited for it, by how that ended.",
            ["model", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def record_eviction(self, model: str) -> None:
        self._evictions.labels(model).inc()

    def record_wait(self, model: str, seconds: float, outcome: str) -> None:
        self._waits.labels(model, outcome).observe(seconds)

    def request(
        self, model: str, outcome: Outcome, seconds: float, first_byte: float | None
    ) -> None:
        self._requests.labels(model, outcome.status).inc()
        self._seconds.labels(model).observe(seconds)
        if first_byte is not None:
            self._first_byte.labels(model).observe(first_byte)
        if outcome.usage is not None:
            self._tokens.labels(model, "prompt").inc(outcome.usage.prompt_tokens)
            self._tokens.labels(model, "cached").inc(outcome.usage.cached_tokens)
            self._tokens.labels(model, "completion").inc(outcome.usage.completion_tokens)


class _ModelCollector(Collector):
    """Reads the models' states at the moment of the scrape."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "llm_manager_model_state", "1 for the state it is in.", labels=["model", "state"]
        )
        in_flight = GaugeMetricFamily(
            "llm_manager_in_flight", "Requests under way.", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "llm_manager_waiting", "Requests that wait for the model.", labels=["model"]
        )
        starts = CounterMetricFamily(
            "llm_manager_starts", "Starts by how they ended.", labels=["model", "outcome"]
        )
        for model in self._services.fleet.models():
            self._add(model, state, in_flight, waiting, starts)
        yield from (state, in_flight, waiting, starts)

    @staticmethod
    def _add(
        model: Model,
        state: GaugeMetricFamily,
        in_flight: GaugeMetricFamily,
        waiting: GaugeMetricFamily,
        starts: CounterMetricFamily,
    ) -> None:
        view = model.to_json()
        name = view["name"]
        for each in State:
            state.add_metric([name, each.value], float(view["state"] == each.value))
        in_flight.add_metric([name], view["in_flight"])
        waiting.add_metric([name], view["waiting"])
        starts.add_metric([name, "ready"], model.starts)
        starts.add_metric([name, "failed"], model.failed_starts)


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("metrics", __name__)
    services.metrics.registry.register(_ModelCollector(services))

    @routes.get("/metrics")
    def metrics() -> Response:
        return Response(
            generate_latest(services.metrics.registry), content_type=CONTENT_TYPE_LATEST
        )

    return routes
