"""One encoder under several heads, on the CPU: each head's backend has its own weights and asks the same encoder."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from distilfast.backends.base import Results, Trace
from distilfast.backends.cpu import CpuBackend
from distilfast.backends.extension import head_arguments
from distilfast.batch import PackedBatch
from distilfast.errors import BackendError
from distilfast.heads import Head
from distilfast.types import Precision
from distilfast.weights import Weights


class SharedEncoder:
    """An encoder without a head; within ``encoded`` a thread asks it once, however many heads read its answer."""

    def __init__(self, weights: Weights, precision: Precision, threads: int | None) -> None:
        """Raises BackendError for a precision that the CPU does not have."""
        self.backend = CpuBackend(threads)
        self.backend.load(weights, Head("feature-extraction", "first", ()), precision)
        self._thread = threading.local()

    @contextmanager
    def encoded(self, batch: PackedBatch) -> Iterator[None]:
        """Keeps the hidden state of ``batch``, which must not change, for this thread until the end of the block."""
        self._thread.kept = batch, self._encode(batch)
        try:
            yield
        finally:
            del self._thread.kept

    def hidden(self, batch: PackedBatch) -> np.ndarray:
        """The last hidden state [T, D], float32."""
        kept, hidden = getattr(self._thread, "kept", (None, None))
        return hidden if kept is batch and hidden is not None else self._encode(batch)

    def _encode(self, batch: PackedBatch) -> np.ndarray:
        hidden, _ = self.backend.forward(batch, None, hidden=True)
        assert hidden is not None
        return hidden


class HeadBackend:
    """One head on an encoder that others use too; its answers are the bits of an encoder with this head."""

    name = "cpu"

    def __init__(self, encoder: SharedEncoder) -> None:
        """Without a head; ``load`` adds it."""
        self._encoder = encoder

    @property
    def detail(self) -> str:
        """As of ``CpuBackend``."""
        return f"{self._encoder.backend.detail}, one of several heads"

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """Pack the head's linears; ``precision`` is the encoder's, whose weights are not read from ``weights``."""
        from distilfast import _cpu

        weights.check_finite()
        backend = self._encoder.backend
        facts = backend.info()
        self._head = None
        if head.linears:
            self._head = _cpu.Head(
                **head_arguments(weights, head),
                tensors=weights.tensors,
                isa=str(facts["isa"]),
                precision=precision,
                threads=backend.threads,
            )

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """See ``Backend.forward``; every row of the last layer is computed. Raises BackendError for a trace."""
        if trace is not None:
            raise BackendError("One of several heads has no trace; load its checkpoint by itself.")
        state = self._encoder.hidden(batch)
        output = None
        if self._head is not None and rows is not None:
            output = self._head.forward(state[rows], columns)
        return state.copy() if hidden else None, output

    def info(self) -> dict[str, object]:
        """The facts of the encoder."""
        return self._encoder.backend.info()
