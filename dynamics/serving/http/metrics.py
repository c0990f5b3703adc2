"""Metrics of the HTTP layer and of the service behind it, for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from dynamics.serving.backend import ServiceStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class HttpMetrics:
    """Requests by route and status, how long they took, how many are open."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dynamics_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "dynamics_request_seconds",
            "From the request's arrival at the application to its last byte.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._open = Gauge(
            "dynamics_open_requests", "Requests being answered.", registry=self._registry
        )

    def begin(self) -> None:
        """Count a request that arrived."""
        self._open.inc()

    def end(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or whose client has left (status 0)."""
        self._open.dec()
        self._requests.labels(route, str(status) if status else "left").inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, status: ServiceStatus) -> bytes:
        """Metrics in Prometheus' text format, with the service's own."""
        own = CollectorRegistry()
        own.register(_ServiceFigures(status))
        return generate_latest(self._registry) + generate_latest(own)


class _ServiceFigures(Collector):
    def __init__(self, status: ServiceStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Queue, round and batch sizes, as they are now."""
        yield GaugeMetricFamily(
            "dynamics_waiting", "Requests that wait for the model.", value=self._status.waiting
        )
        if self._status.promoted is not None:
            yield GaugeMetricFamily(
                "dynamics_round", "The promoted round.", value=self._status.promoted
            )
        yield CounterMetricFamily(
            "dynamics_batch_seconds",
            "Time that batches took, all added up.",
            value=self._status.batch_seconds,
        )
        sizes = self._status.batch_sizes
        buckets = [
            (str(limit), float(sum(n for size, n in sizes.items() if size <= limit)))
            for limit in _BATCH_SIZES
        ]
        buckets.append(("+Inf", float(sum(sizes.values()))))
        yield HistogramMetricFamily(
            "dynamics_batch_size",
            "Requests that went through the model together.",
            buckets=buckets,
            sum_value=sum(size * n for size, n in sizes.items()),
        )
