"""The quality gate: what a precision costs on labelled texts, in points of 100."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distilfast.batch import Encoded, PackedBatch
from distilfast.config import ModelConfig
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation.label_metrics import Metric, metric_for
from distilfast.evaluation.labels import Label
from distilfast.parity.budgets import QUALITY_POINTS
from distilfast.parity.comparison import batches, finite
from distilfast.parity.oracles import TransformersModel, load_transformers
from distilfast.tokenizer import Text
from distilfast.types import BackendName, Precision, Task
from distilfast.weights import Weights, load_weights, resolve

Baseline = Precision | Literal["reference", "transformers"]

Forward = Callable[[PackedBatch], np.ndarray]
"""What a metric reads of a batch: ``Engine.logits``, or ``Engine.encode``."""


@dataclass(frozen=True)
class Quality:
    """Points, of 100, of the engine and of the baseline, over ``count`` labels.

    ``changed`` answers differ; ``lost`` are right with the baseline and wrong with the engine, ``won`` the reverse.
    ``exact_match``: points of both, in that order, where the metric is F1; it must keep the budget as well.
    """

    task: str
    metric: str
    count: int
    engine: str
    baseline: str
    engine_points: float
    baseline_points: float
    changed: int
    lost: int
    won: int
    budget: float = QUALITY_POINTS
    exact_match: tuple[float, float] | None = None

    @property
    def cost(self) -> float:
        """The baseline's points less the engine's."""
        return self.baseline_points - self.engine_points

    @property
    def passed(self) -> bool:
        """Whether the cost is within the budget; a NaN is not."""
        ours, theirs = self.exact_match or (0.0, 0.0)
        return self.cost <= self.budget and theirs - ours <= self.budget

    @property
    def sentence(self) -> str:
        """In one sentence."""
        costs = f"wins {-self.cost:.2f}" if self.cost < 0 else f"costs {self.cost:.2f}"
        exact = "" if self.exact_match is None else "exact match {:.2f}, and {:.2f}; ".format(*self.exact_match)
        return (
            f"{self.engine} {costs} points of {self.metric} on your data: {self.engine_points:.2f}, and "
            f"{self.baseline_points:.2f} with {self.baseline} ({exact}{self.count} labels, {self.changed} answers "
            f"changed, {self.lost} lost, {self.won} won); budget {self.budget:.2f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        verdict = {"cost": self.cost, "passed": self.passed, "sentence": self.sentence}
        plain: dict[str, Any] = finite(asdict(self) | verdict)
        return plain


def gate(
    model: str | Path,
    texts: Sequence[Text],
    labels: Sequence[Label],
    *,
    baseline: Baseline | None = None,
    backend: BackendName = "auto",
    precision: Precision = "fp32",
    task: Task | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Quality:
    """A task metric (see ``label_metrics``) of the engine and of ``baseline``, on the same labelled texts.

    ``baseline``: "reference" (float64), "transformers" (float32), or a precision of the same backend; None is "fp32",
    and for an fp32 engine "reference". Raises the errors of ``Engine.from_pretrained``, and InputError for labels that
    do not fit.
    """
    if not texts or len(texts) != len(labels):
        raise InputError(f"There are {len(labels)} labels for {len(texts)} texts.")
    baseline = baseline or ("reference" if precision == "fp32" else "fp32")
    directory = resolve(model, revision=revision)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task or config.task)
    engine = Engine(weights, head, precision=precision, backend=backend, threads=threads, directory=directory)
    encodings = engine.tokenizer.encode_batch(texts, truncation=True, max_length=config.max_positions)
    metric = metric_for(engine, texts, encodings, labels)
    forwards = (_forward(engine, metric), _baseline(baseline, metric, weights, engine, backend, threads))
    ours, theirs = (
        metric.finish(_collected(forward, metric, metric.sequences or encodings, config)) for forward in forwards
    )
    right, was_right = metric.right(ours), metric.right(theirs)
    return Quality(
        task=engine.task,
        metric=metric.name,
        count=len(metric.gold),
        engine=f"{engine.precision} on {backend}" if backend != "auto" else engine.precision,
        baseline=baseline,
        engine_points=metric.points(ours),
        baseline_points=metric.points(theirs),
        changed=int((ours != theirs).sum()) if len(right) else 0,
        lost=int((was_right & ~right).sum()),
        won=int((right & ~was_right).sum()),
        exact_match=(100.0 * float(right.mean()), 100.0 * float(was_right.mean())) if metric.exact_match else None,
    )


def _baseline(
    name: Baseline, metric: Metric, weights: Weights, engine: Engine, backend: BackendName, threads: int | None
) -> Forward:
    if name == "transformers":
        return _of_transformers(weights, engine, metric)
    if name == "reference":
        other = Engine(weights, engine.head, precision="fp64", backend="reference")
    else:
        other = Engine(weights, engine.head, precision=name, backend=backend, threads=threads)
    return _forward(other, metric)


def _forward(engine: Engine, metric: Metric) -> Forward:
    return engine.encode if metric.reads_hidden else engine.logits


def _of_transformers(weights: Weights, engine: Engine, metric: Metric) -> Forward:
    assert engine.directory is not None
    model = TransformersModel(load_transformers(engine.directory, engine.task), weights, engine.head)
    last_head, last_hidden = f"head.{len(engine.head.linears) - 1}", f"layer.{engine.config.num_layers - 1}.output"
    return lambda batch: model(batch)[last_hidden if metric.reads_hidden else last_head]


def _collected(forward: Forward, metric: Metric, sequences: Sequence[Encoded], config: ModelConfig) -> np.ndarray:
    return np.concatenate(
        [
            metric.read(range(first, first + batch.num_sequences), batch, forward(batch))
            for first, batch in batches(sequences, config)
        ]
    )
