"""What Prometheus reads at ``/metrics``: of one process, or of all workers, each with its number as a label."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from distilfast.machine import memory_limit
from distilfast.serving.batcher import Batcher
from distilfast.serving.http.board import Board
from distilfast.serving.work import STAGES, Forward, Timing

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
PUBLISH_S = 1.0
"""Seconds after which a worker's metrics are renewed for the others to read."""


class Metrics:
    """The histograms, and the batcher's own counts as they are when they are read."""

    def __init__(self) -> None:
        """In a registry of their own, so that several servers in a process do not meet."""
        self.registry = CollectorRegistry()
        requests = self._histogram("request_seconds", "Seconds of HTTP requests.", ("route", "status"), SECONDS)
        stages = self._histogram("stage_seconds", "Seconds of an input's stages.", ("model", "stage"), SECONDS)
        tokens = self._histogram("input_tokens", "Tokens of an input.", ("model",), TOKENS)
        sequences = self._histogram("batch_sequences", "Sequences of a batch.", ("model",), SEQUENCES)
        batch_tokens = self._histogram("batch_tokens", "Tokens of a batch.", ("model",), TOKENS)
        forwards = self._histogram("forward_seconds", "Seconds of a batch's forward.", ("model",), SECONDS)
        # Looked up once for each model: `labels` takes longer than `observe`.
        self._stages = cache(lambda model: [(stage, stages.labels(model, stage)) for stage in STAGES])
        self._tokens, self._sequences = cache(tokens.labels), cache(sequences.labels)
        self._batch_tokens, self._forwards = cache(batch_tokens.labels), cache(forwards.labels)
        self._route = cache(lambda route, status: requests.labels(route, str(status)))
        self._batcher: Batcher | None = None
        self._board: Board | None = None
        self._number = 0
        self.registry.register(_Collector(lambda: _of_batcher(self._batcher)))

    def _histogram(self, name: str, what: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"distilfast_{name}", what, labels, buckets=buckets, registry=self.registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has ended."""
        self._route(route, status).observe(seconds)

    def answer(self, timing: Timing) -> None:
        """An input has been answered."""
        for stage, seconds in self._stages(timing.model):
            seconds.observe(getattr(timing, stage))
        self._tokens(timing.model).observe(timing.tokens)

    def forward(self, forward: Forward) -> None:
        """A batch has been run."""
        self._sequences(forward.model).observe(forward.sequences)
        self._batch_tokens(forward.model).observe(forward.tokens)
        self._forwards(forward.model).observe(forward.seconds)

    def text(self, batcher: Batcher | None) -> bytes:
        """The metrics at this moment; of other workers, as they were a second ago."""
        self._batcher = batcher
        if self._board is None:
            return generate_latest(self.registry)
        self._publish()
        board = self._board
        merged = CollectorRegistry()
        merged.register(_Collector(lambda: _merged([board.read(i) for i in range(board.workers)])))
        return generate_latest(merged)

    def share(self, board: Board, number: int) -> None:
        """From now on, in a forked process, these are the metrics of worker ``number``."""
        self._board, self._number = board, number
        board.claim(number)

    async def keep_publishing(self, batcher: Callable[[], Batcher | None]) -> None:
        """Show them to the other workers, for ever; at once an end where there are none."""
        while self._board is not None:
            self._batcher = batcher()
            self._publish()
            await asyncio.sleep(PUBLISH_S)

    def _publish(self) -> None:
        assert self._board is not None
        families = [
            [each.name, each.documentation, each.type, [[s.name, s.labels, s.value] for s in each.samples]]
            for each in self.registry.collect()
        ]
        self._board.write(self._number, json.dumps(families).encode())


class _Collector:
    """What a registry reads: the metrics that a function gives."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect


def _merged(published: Iterable[bytes]) -> list[Metric]:
    """The metrics of all workers, each sample with the number of its worker."""
    metrics: dict[str, Metric] = {}
    for number, data in enumerate(published):
        families: list[Any] = json.loads(data) if data else []
        for name, what, kind, samples in families:
            metric = metrics.setdefault(name, Metric(name, what, kind))
            for sample, labels, value in samples:
                metric.add_sample(sample, labels | {"worker": str(number)}, value)
    return list(metrics.values())


def _of_batcher(batcher: Batcher | None) -> Iterator[Metric]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    resident = _resident_bytes()
    # Linux counts the peak from time to time only.
    peak = max(peak, resident or 0)
    yield GaugeMetricFamily("distilfast_peak_resident_bytes", "Most memory that the process has had.", peak)
    if resident is not None:
        yield GaugeMetricFamily("distilfast_resident_bytes", "Memory that the process has.", resident)
    if (limit := memory_limit()) is not None:
        yield GaugeMetricFamily("distilfast_memory_limit_bytes", "What the container may have.", limit)
    if batcher is None:
        return
    info = batcher.info()
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
        "distilfast_cost_factor", "What forwards take, over what the cost curve says.", labels=["model"]
    )
    weights = GaugeMetricFamily("distilfast_weights_bytes", "Packed weights; workers share them.", labels=["model"])
    for name, model in info["models"].items():
        factor.add_metric([name], model["factor"])
        weights.add_metric([name], batcher.pipelines[name].engine.info().get("packed_bytes", 0))
    yield from (factor, weights)


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()
