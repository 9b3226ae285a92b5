"""The interface between the engine and its backends."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import numpy as np

from distilfast.batch import DeviceBatch, PackedBatch
from distilfast.heads import Head
from distilfast.types import Precision
from distilfast.weights import Weights

Trace = dict[str, np.ndarray]
"""Every named intermediate of one forward, in the order of computation:

``embed`` [T, D]; for each layer i ``layer.<i>.qkv`` [T, 3D], ``.probabilities`` (each sequence's [H, L, L], flat,
concatenated), ``.context`` [T, D], ``.attention_out`` [T, D], ``.attention_norm`` [T, D], ``.ffn_in`` [T, F] (after
the activation), ``.ffn_out`` [T, D], ``.output`` [T, D]; and for each linear j of the head ``head.<j>`` [R, N].
"""


Results = tuple[np.ndarray | None, np.ndarray | None]
"""Last hidden state [T, D] and head output [R, N], each None where it was not asked for."""


class Backend(Protocol):
    """One implementation of the encoder, chosen once, at load; it owns its packed weights and its scratch memory."""

    name: str  # "cpu", "reference"

    @property
    def detail(self) -> str:
        """As "avx512 fp32, 2 threads": what ``info`` and every benchmark row print."""
        ...

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """Load the weights; raises BackendError for a precision that this backend does not have.

        Their values have not been checked: the backend calls ``weights.check_finite()``, unless it maps packed weights
        from the cache, which were checked when they were packed.
        """
        ...

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """Run the encoder and its head.

        ``rows`` int32 [R], strictly increasing: the token rows that the head reads; None: the head is not run.
        ``hidden``: whether to return the last hidden state of all T rows; without it, rows that the head does not read
        are not computed. ``trace`` is filled with the intermediates that ``names`` lists, or all, every row computed.
        ``columns`` int32 [C], strictly increasing: the columns of the head's output to return, the same bits as among
        all N; only with ``rows`` and without ``trace``.
        Returns (last hidden state [T, D] or None, head output [R, N] or [R, C] or None).
        """
        ...

    def info(self) -> dict[str, object]:
        """Facts of this backend alone: its ISA, threads, the bytes it holds."""
        ...


@runtime_checkable
class DeviceResults(Protocol):
    """A backend that can leave its results on the GPU."""

    name: str

    def forward_on_device(
        self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool, stream: int | None = None
    ) -> tuple[Any, Any]:
        """``Backend.forward`` with fp32 arrays on the GPU, which have DLPack and are not copied.

        The host does not wait for them; ``stream`` does, a handle, None for torch's current one. Raises BackendError
        for a batch that has to be run in pieces.
        """
        ...


@runtime_checkable
class DeviceBatches(Protocol):
    """A backend that takes a batch whose ids are on the GPU already."""

    name: str

    def forward_from_device(
        self, batch: DeviceBatch, rows: Any | None, hidden: bool, stream: int | None = None
    ) -> tuple[Any, Any]:
        """``forward_on_device`` for a ``DeviceBatch``; ``rows``: an array on the GPU, "first", "all" or None."""
        ...


def select_columns(results: Results, columns: np.ndarray | None) -> Results:
    """``columns`` of the head's output, for a backend that computes all of them."""
    hidden, output = results
    return hidden, output if output is None or columns is None else output[:, columns]
