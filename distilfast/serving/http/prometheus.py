"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from distilfast.serving.batcher import Batcher, Timing

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics:
    """The histograms, and the batcher's own counts as they are when they are read."""

    def __init__(self) -> None:
        """In a registry of their own, so that several servers in a process do not meet."""
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "distilfast_request_seconds",
            "Seconds of HTTP requests.",
            ("route", "status"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "distilfast_stage_seconds",
            "Seconds of an input's stages.",
            ("model", "stage"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._tokens = Histogram(
            "distilfast_input_tokens", "Tokens of an input.", ("model",), buckets=TOKENS, registry=self.registry
        )
        self.batcher: Batcher | None = None
        self.registry.register(_Batchers(self))

    def request(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has ended."""
        self._requests.labels(route, str(status)).observe(seconds)

    def answer(self, timing: Timing) -> None:
        """An input has been answered."""
        for stage in ("queue", "forward", "post"):
            self._stages.labels(timing.model, stage).observe(getattr(timing, stage))
        self._tokens.labels(timing.model).observe(timing.tokens)


class _Batchers:
    """Reads the batcher that serves now."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The metrics at this moment."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        yield GaugeMetricFamily("distilfast_peak_resident_bytes", "Most memory that the process has had.", peak)
        if self._metrics.batcher is None:
            return
        info = self._metrics.batcher.info()
        for name in ("submitted", "answered", "refused", "late", "cancelled", "failed", "shared"):
            yield CounterMetricFamily(f"distilfast_inputs_{name}", f"Inputs {name}.", info[name])
        for name in ("batches", "sequences", "tokens"):
            yield CounterMetricFamily(f"distilfast_{name}", f"{name.capitalize()} that have been run.", info[name])
        for name in ("waiting", "running"):
            what = "Inputs that wait." if name == "waiting" else "Batches that run."
            yield GaugeMetricFamily(f"distilfast_{name}", what, info[name])
        cache = info["cache"]
        for name in ("hits", "misses", "evictions"):
            yield CounterMetricFamily(f"distilfast_cache_{name}", f"{name.capitalize()} of the cache.", cache[name])
        yield GaugeMetricFamily("distilfast_cache_bytes", "Bytes of the answers that are kept.", cache["bytes"])
        factor = GaugeMetricFamily(
            "distilfast_cost_factor", "What forwards take, over what was measured at the start.", labels=["model"]
        )
        for name, model in info["models"].items():
            factor.add_metric([name], model["factor"])
        yield factor
