"""Prometheus metrics of a server, in a registry of their own; no label holds what clients send."""

from __future__ import annotations

import os
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from plaudit.serving.scheduler import BatchStats, FairQueue
from plaudit.serving.served_model import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 65536)


class Metrics:
    """Counters of one server process; of several, where prometheus' folder for that is set."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry, multiprocess_mode="livesum")
        self._requests = counter(
            "plaudit_requests",
            "Number of requests by protocol and HTTP status.",
            ("protocol", "status"),
        )
        self._seconds = histogram(
            "plaudit_request_seconds",
            "Seconds from the first byte of a request to its response.",
            ("protocol",),
            buckets=SECONDS,
        )
        self.waited = histogram(
            "plaudit_queue_seconds",
            "Seconds from queueing a request to its first batch.",
            buckets=SECONDS,
        )
        self._batch_seconds = histogram(
            "plaudit_batch_seconds", "Seconds of a batch in the model.", buckets=SECONDS
        )
        self._batch_tokens = histogram(
            "plaudit_batch_tokens", "Number of tokens computed per batch.", buckets=TOKENS
        )
        self._batch_requests = histogram(
            "plaudit_batch_requests",
            "Number of requests per batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self._conversations = counter(
            "plaudit_conversations",
            "Number of scored conversations by source (cache or model).",
            ("source",),
        )
        self._tokens = counter(
            "plaudit_tokens_computed",
            "Number of tokens that the model computed; shared prompts count once.",
        )
        self._reused = counter(
            "plaudit_tokens_reused", "Number of tokens read from the prefix cache."
        )
        self.rejected = counter(
            "plaudit_rejected", "Number of rejected requests by reason.", ("reason",)
        )
        self._queue_jobs = gauge("plaudit_queue_requests", "Number of queued requests.")
        self._queue_tokens = gauge("plaudit_queue_tokens", "Number of queued tokens.")
        self.version = gauge(
            "plaudit_model_version",
            "Number of times that a model was loaded.",
            ("model",),
            multiprocess_mode="max",
        )

    def answered(self, protocol: str, status: int, seconds: float) -> None:
        self._requests.labels(protocol, str(status)).inc()
        self._seconds.labels(protocol).observe(seconds)

    def batch(self, computed: BatchStats, *, requests: int, seconds: float) -> None:
        self._batch_seconds.observe(seconds)
        self._batch_tokens.observe(computed.tokens)
        self._batch_requests.observe(requests)
        self._conversations.labels("cache").inc(computed.cached)
        self._conversations.labels("model").inc(computed.conversations - computed.cached)
        self._tokens.inc(computed.tokens)
        self._reused.inc(computed.reused)

    def text(self, queue: FairQueue[ServedModel]) -> bytes:
        """Everything, as Prometheus reads it, with what waits in ``queue`` now."""
        self._queue_jobs.set(queue.jobs)
        self._queue_tokens.set(queue.tokens)
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
