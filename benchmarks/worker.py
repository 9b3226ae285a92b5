"""One contestant in a process of its own, told what to run through a pipe."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.workloads import Case


class Worker:
    """A handle on the process; ``failure`` says why there is none, in one sentence."""

    def __init__(self, name: str, directory: Path, threads: int) -> None:
        """Start the process and wait until the contestant is loaded."""
        module = import_module(f"benchmarks.engines.{name}")
        self.name, self.precision = name, module.PRECISION
        self.failure: str | None = module.unavailable()
        if self.failure is None:
            self._pipe, theirs = get_context("spawn").Pipe()
            self._process = get_context("spawn").Process(target=_serve, args=(name, directory, threads, theirs))
            self._process.start()
            self.failure = self._receive()

    def answer(self, case: Case, vocabulary: int) -> np.ndarray:
        """The last hidden state [B, L, D]."""
        return self._ask("answer", case, vocabulary)

    def samples(self, case: Case, vocabulary: int, seconds: float) -> list[float]:
        """Seconds of single forwards."""
        return self._ask("samples", case, vocabulary, seconds)

    def close(self) -> None:
        """End the process."""
        if self.failure is None:
            self._pipe.send(None)
            self._process.join()

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return f"The process ended with status {self._process.exitcode}."


def _serve(name: str, directory: Path, threads: int, pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run = import_module(f"benchmarks.engines.{name}").load(directory, threads, Path(scratch))
        except Exception as error:  # whatever a contestant raises, the others go on
            pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}")
            return
        pipe.send(None)
        while question := pipe.recv():
            kind, case, vocabulary, *rest = question
            ids = case.ids(vocabulary)
            forward = partial(run, ids, np.ones_like(ids))
            answer = forward()  # also the warm-up: the first call of a shape may allocate
            pipe.send(np.asarray(answer) if kind == "answer" else timing.samples(forward, *rest))
