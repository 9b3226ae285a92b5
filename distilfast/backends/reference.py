"""The float64 reference as a backend: slow, exact, and available everywhere."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from distilfast import reference
from distilfast.backends.base import Results, Trace, select_columns
from distilfast.batch import PackedBatch
from distilfast.errors import BackendError
from distilfast.heads import Head
from distilfast.types import Precision
from distilfast.weights import Weights

PRECISIONS: tuple[Precision, ...] = ("fp64",)


def unavailable() -> str | None:
    """None: numpy is always there."""
    return None


class ReferenceBackend:
    """Runs ``distilfast/reference.py``; results are float64."""

    name = "reference"
    detail = "numpy fp64"

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` is accepted and not used: numpy chooses its own."""

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """Keep the weights in float64; raises BackendError for any precision but fp64."""
        if precision not in PRECISIONS:
            raise BackendError(f"precision {precision!r} is not available on backend reference; it has fp64.")
        weights.check_finite()
        self._config, self._head = weights.config, head
        self._tensors = {name: tensor.astype(np.float64) for name, tensor in weights.tensors.items()}

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """See ``Backend.forward``; every row of the last layer is always computed."""
        all_names: Trace = {}
        x = reference.encoder(batch, self._tensors, self._config, all_names)
        output = None
        if rows is not None and self._head.linears:
            output = reference.run_head(x[rows], self._head, self._tensors, self._config.layer_norm_eps, all_names)
        if trace is not None:
            trace.update({name: all_names[name] for name in all_names if names is None or name in names})
        return select_columns((x if hidden else None, output), columns)

    def info(self) -> dict[str, object]:
        """Nothing beyond ``detail``."""
        return {}
