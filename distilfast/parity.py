"""How close a backend comes to the truth: every named intermediate against ``reference.py`` in float64.

The only room with tolerances. The budgets are those of the precisions: an error is ‖out − ref‖ / ‖ref‖.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilfast import reference
from distilfast.backends.base import Trace
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.heads import Head
from distilfast.weights import Weights, load_weights, resolve

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1905 Einstein published four papers, each of which changed physics.",
    "Paris is the capital of [MASK].",
    "Rain.",
)
"""What is compared where the caller names no text: ragged, with digits, a mask, and one word alone."""

NAIVE_FACTOR = 2.0
"""A precision keeps its budget if its error is at most this often that of a naive forward in the same precision."""


@dataclass(frozen=True)
class Row:
    """The errors of one intermediate: largest absolute, relative by norm, and the smallest cosine of a row.

    ``naive`` is the relative error of ``reference.py`` run in float32.
    """

    name: str
    max_abs: float
    relative: float
    cosine: float
    naive: float


@dataclass(frozen=True)
class Report:
    """All rows of one comparison; ``budget`` is for the relative error of ``judged``, the last hidden state."""

    model: str
    task: str
    detail: str
    precision: str
    tokens: int
    budget: float
    judged: str
    rows_: tuple[Row, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """As dicts, in the order of computation."""
        return [asdict(row) for row in self.rows_]

    @property
    def passed(self) -> bool:
        """Is the judged intermediate within the budget? A NaN is not."""
        return next(row.relative for row in self.rows_ if row.name == self.judged) <= self.budget

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("model", "task", "detail", "precision", "tokens", "budget", "judged", "passed", "rows")
        return {name: getattr(self, name) for name in names}


def compare(
    model: str | Path,
    *,
    texts: Sequence[str] | None = None,
    against: str = "reference",
    backend: str = "auto",
    precision: str = "fp32",
    task: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Report:
    """Run ``texts`` through a backend and through the reference, and hold every intermediate against the other.

    Raises the errors of ``Engine.from_pretrained``, and InputError for an ``against`` that is not there.
    """
    if against != "reference":
        raise InputError(f"against {against!r} is not known; there is reference.")
    directory = resolve(model, revision=revision)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task or config.task)
    engine = Engine(weights, head, precision=precision, backend=backend, threads=threads, directory=directory)
    truth = Engine(weights, head, precision="fp64", backend="reference", directory=directory)
    encodings = engine.tokenizer.encode_batch(list(texts or TEXTS), truncation=True, max_length=config.max_positions)
    types = [e.type_ids for e in encodings] if config.token_types else None
    batch = PackedBatch.from_sequences([e.ids for e in encodings], types)
    got: Trace = {}
    wanted: Trace = {}
    engine.forward(batch, trace=got)
    truth.forward(batch, trace=wanted)
    rows = measure(got, wanted, _naive(batch, weights, head))
    judged = f"layer.{config.num_layers - 1}.output"
    return Report(
        model=str(model),
        task=engine.task,
        detail=str(engine.info()["detail"]),
        precision=precision,
        tokens=batch.num_tokens,
        budget=NAIVE_FACTOR * next(row.naive for row in rows if row.name == judged),
        judged=judged,
        rows_=rows,
    )


def measure(got: Trace, wanted: Trace, naive: Trace) -> tuple[Row, ...]:
    """A row for each intermediate of ``wanted``, in its order."""
    return tuple(
        Row(
            name,
            max_abs=float(np.abs(got[name] - truth).max()),
            relative=relative_error(got[name], truth),
            cosine=lowest_cosine(got[name], truth),
            naive=relative_error(naive[name], truth),
        )
        for name, truth in wanted.items()
    )


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """‖got − wanted‖ / ‖wanted‖."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def lowest_cosine(got: np.ndarray, wanted: np.ndarray) -> float:
    """The smallest cosine of the angle between two rows; a flat array is one row."""
    a, b = np.atleast_2d(got).astype(np.float64), np.atleast_2d(wanted)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.divide((a * b).sum(axis=1), norms, out=np.ones_like(norms), where=norms > 0).min())


def _naive(batch: PackedBatch, weights: Weights, head: Head) -> Trace:
    """Every intermediate of the reference run in float32, the tensors as they are stored."""
    trace: Trace = {}
    config = weights.config
    x = reference.encoder(batch, weights.tensors, config, trace)
    if head.linears:
        rows = batch.first_rows if head.rows == "first" else slice(None)
        reference.run_head(x[rows], head, weights.tensors, config.layer_norm_eps, trace)
    return trace
