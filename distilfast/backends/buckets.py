"""Two GPU backends, of which each batch is run by the one that was measured to be faster at its number of tokens.

The weights are on the GPU twice, 0.2 GB for each copy of a DistilBERT in bf16, on GPUs of 24 GB and more. A second
backend is loaded only where each of the two is the faster one in some bucket.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from distilfast.backends.base import Backend, DeviceBatches, DeviceResults, Results, Trace
from distilfast.batch import DeviceBatch, PackedBatch, bucket_for
from distilfast.heads import Head
from distilfast.types import Precision
from distilfast.weights import Weights


class BucketBackend:
    """Runs each batch on one of its backends, chosen by token bucket: within a bucket the bits do not change."""

    def __init__(self, backends: dict[str, Backend], winners: dict[int, str]) -> None:
        """``backends`` by name, not loaded yet; ``winners``: the name for each bucket that was measured."""
        self._backends, self._winners = backends, winners
        self.name = " and ".join(backends)

    @property
    def detail(self) -> str:
        """The detail of each backend, and which of them runs which buckets."""
        ranges = ", ".join(f"{name} at {tokens}" for tokens, name in sorted(self._winners.items()))
        return f"{'; '.join(backend.detail for backend in self._backends.values())}; by tokens: {ranges}"

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """See ``Backend.load``: all of them."""
        for backend in self._backends.values():
            backend.load(weights, head, precision)

    def chosen(self, tokens: int) -> str:
        """The name of the backend for so many tokens: of their bucket, or of the nearest that was measured."""
        bucket = bucket_for(tokens)
        nearest = min(self._winners, key=lambda measured: (max(measured, bucket) / min(measured, bucket), measured))
        return self._winners[nearest]

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """See ``Backend.forward``."""
        return self._backends[self.chosen(batch.num_tokens)].forward(batch, rows, hidden, trace, columns, names)

    def forward_on_device(
        self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool, stream: int | None = None
    ) -> tuple[Any, Any]:
        """See ``DeviceResults``."""
        backend = self._backends[self.chosen(batch.num_tokens)]
        assert isinstance(backend, DeviceResults)
        return backend.forward_on_device(batch, rows, hidden, stream)

    def forward_from_device(
        self, batch: DeviceBatch, rows: Any | None, hidden: bool, stream: int | None = None
    ) -> tuple[Any, Any]:
        """See ``DeviceBatches``: backend cuda is the only one."""
        backend = self._backends["cuda"]
        assert isinstance(backend, DeviceBatches)
        return backend.forward_from_device(batch, rows, hidden, stream)

    def info(self) -> dict[str, Any]:
        """The facts of each backend under its name, the winners, and the bytes of both."""
        facts: dict[str, Any] = {name: backend.info() for name, backend in self._backends.items()}
        sums = {key: sum(each[key] for each in facts.values()) for key in ("packed_bytes", "scratch_bytes")}
        return {**facts, "buckets": dict(self._winners), **sums}
