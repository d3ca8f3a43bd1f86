"""Prometheus metrics of a server, in a registry of their own; no label holds what clients send."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from plaudit.serving.scheduler import BatchStats, FairQueue
from plaudit.serving.served_model import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 65536)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server process; of several, where prometheus' folder for that is set."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        where: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "plaudit_requests", "Requests by protocol and status.", ("protocol", "status"), **where
        )
        self._seconds = Histogram(
            "plaudit_request_seconds",
            "From the request's first byte to its answer.",
            ("protocol",),
            buckets=SECONDS,
            **where,
        )
        self._waited = Histogram(
            "plaudit_queue_seconds",
            "From the queue to a request's first batch.",
            buckets=SECONDS,
            **where,
        )
        self._batch_seconds = Histogram(
            "plaudit_batch_seconds", "Time of a batch in the model.", buckets=SECONDS, **where
        )
        self._batch_tokens = Histogram(
            "plaudit_batch_tokens", "Tokens computed in a batch.", buckets=TOKENS, **where
        )
        self._batch_requests = Histogram(
            "plaudit_batch_requests",
            "Requests merged into a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            **where,
        )
        self._conversations = Counter(
            "plaudit_conversations", "Conversations scored, by where from.", ("source",), **where
        )
        self._tokens = Counter(
            "plaudit_tokens_computed", "Tokens the model computed, shared prompts once.", **where
        )
        self._reused = Counter(
            "plaudit_tokens_reused",
            "Tokens read from the prefix cache.",
            **where,
        )
        self._rejected = Counter(
            "plaudit_rejected", "Requests rejected, by reason.", ("reason",), **where
        )
        gauge: dict[str, Any] = {**where, "multiprocess_mode": "livesum"}
        self._queue_jobs = Gauge("plaudit_queue_requests", "Requests that wait.", **gauge)
        self._queue_tokens = Gauge("plaudit_queue_tokens", "Tokens that wait.", **gauge)
        self._version = Gauge(
            "plaudit_model_version",
            "How often a model was loaded.",
            ("model",),
            **{**gauge, "multiprocess_mode": "max"},
        )
        self._queue: FairQueue[ServedModel] | None = None

    def watch_queue(self, queue: FairQueue[ServedModel]) -> None:
        self._queue = queue

    def loaded(self, model: str, version: int) -> None:
        self._version.labels(model).set(version)

    def answered(self, protocol: str, status: int, seconds: float) -> None:
        self._requests.labels(protocol, str(status)).inc()
        self._seconds.labels(protocol).observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def waited(self, seconds: float) -> None:
        self._waited.observe(seconds)

    def batch(self, computed: BatchStats, *, requests: int, seconds: float) -> None:
        self._batch_seconds.observe(seconds)
        self._batch_tokens.observe(computed.tokens)
        self._batch_requests.observe(requests)
        self._conversations.labels("cache").inc(computed.cached)
        self._conversations.labels("model").inc(computed.conversations - computed.cached)
        self._tokens.inc(computed.tokens)
        self._reused.inc(computed.reused)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        if self._queue is not None:
            self._queue_jobs.set(self._queue.jobs)
            self._queue_tokens.set(self._queue.tokens)
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
