"""The comparison: texts through an engine, and each of its intermediates against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.batch import Encoded, PackedBatch
from distilfast.config import ModelConfig
from distilfast.engine import Engine
from distilfast.errors import BackendError, InputError
from distilfast.parity.answers import Agreement, Answers
from distilfast.parity.budgets import Budget, budget_for
from distilfast.parity.oracles import Oracle, ReferenceOracle, TransformersOracle, in_float64, plain_arithmetic
from distilfast.parity.sample_texts import enough
from distilfast.parity.steps import Tensors, apply, narrowed, steps
from distilfast.parity.tally import Row, Tally, shaped
from distilfast.pipelines.sentence_modules import read_modules
from distilfast.tokenizer import Text
from distilfast.types import BackendName, Precision, Task
from distilfast.weights import Weights, load_weights, resolve

AGAINST = ("reference", "transformers")

BATCH_TOKENS = 256
"""Tokens that are traced together; each intermediate of theirs is held up to five times."""


@dataclass(frozen=True)
class Report:
    """All rows of one comparison; ``judged`` is the last hidden state, whose ``budget`` the project states.

    ``yardstick`` says which naive forward the budgets are derived from; ``texts`` were compared, the first ``given``
    of them the caller's own.
    """

    model: str
    task: str
    detail: str
    precision: str
    against: str
    yardstick: str
    derivation: str
    texts: int
    given: int
    tokens: int
    judged: str
    rows_: tuple[Row, ...]
    agreement: Agreement

    @property
    def rows(self) -> list[dict[str, Any]]:
        """As dicts, in the order of computation."""
        return [row.to_dict() for row in self.rows_]

    @property
    def budget(self) -> float:
        """The budget of ``judged``."""
        return next(row.budget for row in self.rows_ if row.name == self.judged)

    @property
    def passed(self) -> bool:
        """Whether every intermediate is within its budget."""
        return self.first_wrong is None

    @property
    def first_wrong(self) -> str | None:
        """The first intermediate, in the order of computation, that is not within its budget."""
        return next((row.name for row in self.rows_ if not row.passed), None)

    @property
    def sentence(self) -> str:
        """The reason for the verdict; for a failure, the first wrong intermediate."""
        judged = next(row for row in self.rows_ if row.name == self.judged)
        if self.passed:
            return (
                f"all {len(self.rows_)} intermediates keep their budgets; {self.judged} is off by "
                f"{judged.relative:.1e}, budget {judged.budget:.1e}"
            )
        wrong = next(row for row in self.rows_ if not row.passed)
        return f"the first wrong intermediate is {wrong.name}: {wrong.complaint}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN and infinities become None."""
        payload = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("rows_", "agreement")
        }
        payload |= {name: getattr(self, name) for name in ("budget", "passed", "first_wrong", "rows")}
        plain: dict[str, Any] = finite(payload | {"agreement": asdict(self.agreement)})
        return plain


def finite(value: Any) -> Any:
    """``value`` with None for every float that JSON cannot represent."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare(
    model: str | Path,
    *,
    texts: Sequence[Text] | None = None,
    against: str = "reference",
    backend: BackendName = "auto",
    precision: Precision = "fp32",
    task: Task | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Report:
    """Run ``texts`` (ours for None) through a backend, and compare every intermediate with the truth.

    Raises the errors of ``Engine.from_pretrained``, BackendError where transformers is not installed, and InputError
    for an unknown ``against``.
    """
    if against not in AGAINST:
        raise InputError(f"against {against!r} is not known; there are {', '.join(AGAINST)}.")
    directory = resolve(model, revision=revision)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task or config.task)
    engine = Engine(weights, head, precision=precision, backend=backend, threads=threads, directory=directory)
    budget = budget_for(precision)
    exact = in_float64(weights)
    plain = ReferenceOracle(weights, exact, head, precision, budget)
    oracle = plain if against == "reference" else TransformersOracle(directory, plain, budget)
    chosen = enough(texts)
    comparison = _Comparison(engine, weights, exact, oracle, budget)
    comparison.run(chosen.texts)
    return Report(
        model=str(model),
        task=engine.task,
        detail=str(engine.info()["detail"]),
        precision=precision,
        against=against,
        yardstick=oracle.yardstick,
        derivation=budget.derivation,
        texts=len(chosen.texts),
        given=chosen.given,
        tokens=comparison.tokens,
        judged=comparison.last_hidden,
        rows_=comparison.rows(),
        agreement=comparison.answers.agreement(),
    )


class _Comparison:
    """Accumulates the errors of each intermediate, batch by batch."""

    def __init__(self, engine: Engine, weights: Weights, exact: Tensors, oracle: Oracle, budget: Budget) -> None:
        self._engine, self._exact, self._oracle, self._budget = engine, exact, oracle, budget
        self._arithmetic = plain_arithmetic(engine.precision, budget)
        tensors = dict(weights.tensors)
        self._plain = narrowed(tensors, self._arithmetic) if self._arithmetic else tensors
        self._tallies: dict[str, Tally] = {}
        self.tokens = 0
        self.last_hidden = f"layer.{engine.config.num_layers - 1}.output"
        is_encoder = engine.task == "feature-extraction"
        source = self.last_hidden if is_encoder else f"head.{len(engine.head.linears) - 1}"
        modules = read_modules(engine.directory if is_encoder else None, engine.config.hidden_size)
        self.answers = Answers(engine.task, engine.config.num_labels, source, modules)

    def run(self, texts: Sequence[Text]) -> None:
        config = self._engine.config
        encodings = self._engine.tokenizer.encode_batch(texts, truncation=True, max_length=config.max_positions)
        for first, batch in batches(encodings, config):
            self._add(first, batch)

    def rows(self) -> tuple[Row, ...]:
        return tuple(
            tally.row(self._budget, hidden=name == "embed" or name.endswith(".output"), last=name == self.last_hidden)
            for name, tally in self._tallies.items()
        )

    def _add(self, first: int, batch: PackedBatch) -> None:
        got = self._engine.trace(batch)
        truth, naive, torch = self._oracle.truth(batch), self._oracle.naive(batch), self._oracle.torch(batch)
        heads = self._engine.config.num_heads
        made = steps(batch, self._engine.config, self._engine.head)
        missing = [step.name for step in made if step.name not in got]
        if missing:
            raise BackendError(f"The backend leaves {', '.join(missing)} out of its trace, which cannot be judged.")
        for step in made:
            tally = self._tallies.setdefault(step.name, Tally(step.name, self._engine.config))
            tally.add(*(shaped(step.name, trace[step.name], batch, heads) for trace in (got, truth, naive)))
            if torch is not None:
                tally.add_torch(*(shaped(step.name, trace[step.name], batch, heads) for trace in (torch, truth)))
            inputs = [got[name] for name in step.inputs]
            exact = apply(step, self._exact, [x.astype(np.float64) for x in inputs])
            plain = apply(step, self._plain, [x.astype(np.float32) for x in inputs], self._arithmetic)
            ours, exact, plain = (shaped(step.name, array, batch, heads) for array in (got[step.name], exact, plain))
            tally.add_step(ours, exact, plain, _places(first, batch, len(ours)))
        self.answers.add(got, truth, batch)
        self.tokens += batch.num_tokens


def batches(encodings: Sequence[Encoded], config: ModelConfig) -> Iterator[tuple[int, PackedBatch]]:
    """Groups of at most BATCH_TOKENS tokens, or of one text: (its first text's number, the packed batch)."""
    begin = 0
    while begin < len(encodings):
        end, tokens = begin + 1, len(encodings[begin].ids)
        while end < len(encodings) and tokens + len(encodings[end].ids) <= BATCH_TOKENS:
            tokens += len(encodings[end].ids)
            end += 1
        yield begin, PackedBatch.from_encodings(encodings[begin:end], token_types=config.token_types > 0)
        begin = end


def _places(first: int, batch: PackedBatch, rows: int) -> list[tuple[int, int]]:
    """(text, token) of each of ``rows`` rows, of which there is one for each token or for each text."""
    if rows == batch.num_sequences != batch.num_tokens:
        return [(first + b, 0) for b in range(rows)]
    texts = np.repeat(np.arange(batch.num_sequences), np.diff(batch.cu_seqlens))
    tokens = np.arange(batch.num_tokens) - batch.cu_seqlens[:-1][texts]
    return [(first + int(text), int(token)) for text, token in zip(texts, tokens, strict=True)]
