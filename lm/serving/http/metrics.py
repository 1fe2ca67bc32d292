"""Metrics in Prometheus's format: of requests, and of the engine."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm.serving.generation import Generation
from lm.serving.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, service: Service):
        """Of a service; its engine is asked whenever the metrics are."""
        self._registry = registry = CollectorRegistry()
        times = {"buckets": _SECONDS, "registry": registry}
        self.requests = Counter(
            "lab_requests", "requests answered", ("path", "status"), registry=registry
        )
        self.seconds = Histogram("lab_request_seconds", "until the end", ("path",), **times)
        self.first_token = Histogram("lab_time_to_first_token_seconds", "until a token", **times)
        self.queued = Histogram("lab_queue_seconds", "until a slot was free", **times)
        registry.register(_EngineCollector(service))

    def observe(self, generation: Generation) -> None:
        """Takes the times of a finished generation."""
        if generation.admitted is not None:
            self.queued.observe(generation.admitted - generation.created)
        if generation.first_token is not None:
            self.first_token.observe(generation.first_token - generation.created)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's counts when it is asked."""

    def __init__(self, service: Service):
        self._engine = service.engine

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        engine, counts = self._engine, self._engine.counts
        slots = 0 if engine.slots is None else engine.slots.number
        for name, about, value in (
            ("lab_slots", "texts that can be continued at once", slots),
            ("lab_slots_in_use", "texts that are being continued", engine.num_active),
            ("lab_waiting", "requests and rows that wait", engine.num_waiting),
        ):
            yield GaugeMetricFamily(name, about, value=value)
        for name, about, value in (
            ("lab_steps", "times that a token was drawn for all slots", counts.steps),
            ("lab_prompt_tokens", "tokens read", counts.prompt_tokens),
            ("lab_generated_tokens", "tokens drawn", counts.generated_tokens),
            ("lab_rows", "rows computed whole", counts.rows),
            ("lab_cancelled", "generations whose client left", counts.cancelled),
            ("lab_timed_out", "generations that took too long", counts.timed_out),
        ):
            yield CounterMetricFamily(name, about, value=value)


class Measured:
    """ASGI middleware that counts and times requests by their path, of those that exist."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
        """Wraps an application."""
        self.app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        begin, status = time.monotonic(), 499  # where the client left before

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begin)
