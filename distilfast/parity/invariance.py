"""Batch invariance: a text's answer has the same bits alone, in any batch, and with any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.parity.sample_texts import TEXTS
from distilfast.tokenizer import Encoding, Text
from distilfast.types import BackendName, Precision, Task
from distilfast.weights import load_weights, resolve

BATCHES = 50
THREADS = (1, 2)
LARGEST = 16
"""Texts in a random batch, at most."""

Answer = dict[str, np.ndarray]
"""The results of one text, by name: its rows of the last hidden state, and of the head."""


@dataclass(frozen=True)
class Difference:
    """The first answer that differs: which text, its place in the batch, what differs and by how much."""

    text: int
    batch: int | None  # None: alone, with another number of threads
    position: int
    companions: tuple[int, ...]
    threads: int
    what: str
    max_abs: float

    @property
    def sentence(self) -> str:
        """In one sentence."""
        company = ", ".join(map(str, self.companions))
        where = "alone" if self.batch is None else f"at place {self.position} of batch {self.batch} (texts {company})"
        return (
            f"text {self.text} {where}, {_spoken(self.threads)}, differs in the {self.what} by up to "
            f"{self.max_abs:.1e} from itself alone, {_spoken(THREADS[0])}"
        )


@dataclass(frozen=True)
class Invariance:
    """``comparisons`` answers of ``texts`` texts were compared, in ``batches`` batches for each of ``threads``."""

    model: str
    task: str
    details: tuple[str, ...]  # of the engine, for each of ``threads``
    precision: str
    texts: int
    batches: int
    seed: int
    threads: tuple[int, ...]
    compared: tuple[str, ...]
    comparisons: int
    difference: Difference | None

    @property
    def passed(self) -> bool:
        """Whether all bits were equal."""
        return self.difference is None

    @property
    def sentence(self) -> str:
        """What was compared, or what differs."""
        if self.difference is not None:
            return self.difference.sentence
        spoken = ", ".join(map(str, self.threads[:-1])) + f" and {self.threads[-1]}"
        return (
            f"{self.comparisons} answers ({', '.join(self.compared)}) are equal to the bit: {self.texts} texts alone "
            f"and in {self.batches} random batches, with {spoken} threads"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"passed": self.passed, "sentence": self.sentence}


def check_invariance(
    model: str | Path,
    *,
    texts: Sequence[Text] | None = None,
    backend: BackendName = "auto",
    precision: Precision = "fp32",
    task: Task | None = None,
    threads: int | None = None,
    revision: str | None = None,
    batches: int = BATCHES,
    seed: int = 0,
) -> Invariance:
    """Each text alone with one thread, then alone and in random batches with 1, 2 and ``threads`` threads.

    Stops at the first difference. Raises the errors of ``Engine.from_pretrained``, and InputError for no texts.
    """
    chosen = list(TEXTS if texts is None else texts)
    if not chosen:
        raise InputError("There are no texts; at least one is needed.")
    directory = resolve(model, revision=revision)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task or config.task)
    counts = tuple(sorted({*THREADS, threads or 1}))

    def engine(count: int) -> Engine:
        return Engine(weights, head, precision=precision, backend=backend, threads=count, directory=directory)

    first = engine(counts[0])
    encodings = first.tokenizer.encode_batch(chosen, truncation=True, max_length=config.max_positions)
    check = _Check(encodings, first)
    details = []
    for count in counts:
        each = engine(count)
        check.run(each, count, batches, np.random.default_rng(seed))
        details.append(str(each.info()["detail"]))
    return Invariance(
        model=str(model),
        task=first.task,
        details=tuple(details),
        precision=precision,
        texts=len(chosen),
        batches=batches,
        seed=seed,
        threads=counts,
        compared=check.compared,
        comparisons=check.comparisons,
        difference=check.difference,
    )


def _spoken(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


class _Check:
    """The answers of each text alone, and the first difference from them."""

    def __init__(self, encodings: Sequence[Encoding], engine: Engine) -> None:
        self._encodings = encodings
        self._alone = [answers(engine, [encoding])[0] for encoding in encodings]
        self.compared = tuple(self._alone[0])
        self.comparisons = 0
        self.difference: Difference | None = None

    def run(self, engine: Engine, threads: int, batches: int, rng: np.random.Generator) -> None:
        """All texts alone, then ``batches`` draws of them, some more than once; nothing after a difference."""
        for text in range(len(self._encodings)):
            self._compare(engine, [text], None, threads)
        for batch in range(batches):
            drawn = rng.integers(0, len(self._encodings), rng.integers(2, LARGEST + 1))
            self._compare(engine, [int(text) for text in drawn], batch, threads)

    def _compare(self, engine: Engine, drawn: list[int], batch: int | None, threads: int) -> None:
        if self.difference is not None:
            return
        got = answers(engine, [self._encodings[text] for text in drawn])
        for position, (text, answer) in enumerate(zip(drawn, got, strict=True)):
            self.comparisons += 1
            for what, rows in answer.items():
                wanted = self._alone[text][what]
                if rows.tobytes() != wanted.tobytes():
                    off = float(np.abs(rows - wanted).max()) if rows.shape == wanted.shape else float("inf")
                    self.difference = Difference(text, batch, position, tuple(drawn), threads, what, off)
                    return


def answers(engine: Engine, encodings: Sequence[Encoding]) -> list[Answer]:
    """One batch: the last hidden state, and the head's answer both with it and without, where rows are skipped."""
    batch = PackedBatch.from_encodings(encodings, token_types=engine.config.token_types > 0)
    if not engine.head.linears:
        hidden, by_head = engine.encode(batch), {}
    else:
        hidden, with_hidden = engine.encode_with_logits(batch)
        by_head = {"head's answer": with_hidden, "head's answer alone": engine.logits(batch)}
    parts = {"last hidden state": np.split(hidden, batch.cu_seqlens[1:-1])}
    parts |= {what: _by_text(engine, batch.cu_seqlens, rows) for what, rows in by_head.items()}
    return [{what: part[b] for what, part in parts.items()} for b in range(batch.num_sequences)]


def _by_text(engine: Engine, cu_seqlens: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    ends: Callable[[int], Any] = np.arange if engine.head.rows == "first" else lambda count: cu_seqlens[:count]
    return np.split(rows, ends(len(cu_seqlens) - 1)[1:])
