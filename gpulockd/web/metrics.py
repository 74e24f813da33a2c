"""What is measured for Prometheus in this process as it happens, and all of it in the form that Prometheus reads.

What the pool has done stands in its statistics, true over restarts; here are only times that nobody else takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import anyio
from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gpulockd.ledger.verbs import Call
from gpulockd.web.heard import Heard

T = TypeVar("T")

MEDIA = "text/plain; version=0.0.4; charset=utf-8"

_HANDOFF = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROUNDTRIP = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0)
_REQUEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)


class Asks(Protocol):
    """Sends a script."""

    async def __call__(self, call: Call[T]) -> T: ...


class _Rest(Collector):
    """What was gathered for the scrape under way."""

    def __init__(self) -> None:
        self.families: tuple[Metric, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """Yield it."""
        yield from self.families


class Metrics:
    """The instruments of this daemon, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # they double the text, and the process has its own
        self._registry = CollectorRegistry(auto_describe=False)
        self._rest = _Rest()
        self._registry.register(self._rest)
        # Standard names for standard dashboards, and the same under ours.
        ProcessCollector(registry=self._registry)
        ProcessCollector(namespace="gpulockd", registry=self._registry)
        handoff = self._histogram("handoff", "From the moment a gpu was free until its next holder had it.", _HANDOFF)
        self._roundtrip = self._histogram("redis_roundtrip", "How long the store took to answer.", _ROUNDTRIP)
        self.heard = Heard(handoff.observe)
        self._requests = Histogram(
            "gpulockd_http_request_seconds",
            "How long HTTP requests took until their answer began.",
            ("method", "route", "status"),
            buckets=_REQUEST,
            registry=self._registry,
        )
        self.text = b""
        self.made_at_s = float("-inf")
        self.making = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Metrics {len(self.text)} bytes>"

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"gpulockd_{name}_seconds", says, buckets=buckets, registry=self._registry)

    def requested(self, method: str, route: str, status: int, took_s: float) -> None:
        """Count an HTTP request.

        :param route: its template, so that there are few
        """
        self._requests.labels(method, route, str(status)).observe(took_s)

    async def timed(self, asks: Asks, call: Call[T]) -> T:
        """Send a script, and take the time if it was answered."""
        began_s = anyio.current_time()
        answer: T = await asks(call)
        self._roundtrip.observe(anyio.current_time() - began_s)
        return answer

    def written(self, families: Iterable[Metric]) -> bytes:
        """Return everything as text; `families` is what was gathered besides."""
        self._rest.families = tuple(families)
        return generate_latest(self._registry)
