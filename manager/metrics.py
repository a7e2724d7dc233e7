"""The counters for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from manager.tokens import TokenUsage

# Seconds. From a cached embedding to a long answer of a large model on a small card.
_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts of requests and placement. ``model`` is empty for names that are no model's: what a
    client writes must not become a label."""

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
            "Models that were stopped to free memory for another.",
            ["model"],
            registry=self.registry,
        )
        self._waits = Histogram(
            "llm_manager_room_wait_seconds",
            "How long a start waited for free memory, by how that ended.",
            ["model", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def record_eviction(self, model: str) -> None:
        self._evictions.labels(model).inc()

    def record_wait(self, model: str, seconds: float, outcome: str) -> None:
        self._waits.labels(model, outcome).observe(seconds)

    def request(
        self,
        model: str,
        status: int,
        usage: TokenUsage | None,
        seconds: float,
        first_byte: float | None,
    ) -> None:
        """Counts a request that has ended: how long it took, and after how many seconds its first
        byte came, where one did."""
        self._requests.labels(model, status).inc()
        self._seconds.labels(model).observe(seconds)
        if first_byte is not None:
            self._first_byte.labels(model).observe(first_byte)
        if usage is not None:
            self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
            self._tokens.labels(model, "cached").inc(usage.cached_tokens)
            self._tokens.labels(model, "completion").inc(usage.completion_tokens)
