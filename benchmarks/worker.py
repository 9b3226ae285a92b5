"""One contestant in a process of its own, asked through a pipe: what it answers, how long it takes, what it holds."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.engines import Contestant, Forward
from benchmarks.workloads import pad
from distilfast.tokenizer import Tokenizer


class Failure(Exception):
    """What a contestant raised, in one sentence."""


class Worker:
    """The process and the pipe to it."""

    def __init__(self, contestant: Contestant, directory: Path, threads: int, scratch: Path) -> None:
        """Start the process; the contestant is loaded when the first ``answer`` comes, which is None."""
        self.contestant = contestant
        self._pipe, theirs = Pipe()
        words = [contestant.name, contestant.precision, directory, threads, scratch, theirs.fileno()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *map(str, words)],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()

    def ask(self, question: str, *arguments: Any) -> None:
        """Send one of the questions below; ``answer`` waits for what comes back."""
        self._pipe.send((question, arguments))

    def answer(self) -> Any:
        """The answer to the oldest open question; raises Failure."""
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise Failure(f"The process ended with status {self._process.wait()}.") from None
        if isinstance(answer, str):
            raise Failure(answer)
        return answer

    def __call__(self, question: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer."""
        self.ask(question, *arguments)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


def main(name: str, precision: str, directory: str, threads: str, scratch: str, pipe_number: str) -> None:
    """The process: load, then answer questions until the pipe is closed."""
    warnings.simplefilter("ignore")
    pipe = Connection(int(pipe_number))
    questions: dict[str, Callable[..., Any]] = {}

    def load() -> None:
        module = Contestant(name, precision).module
        forward = module.load(Path(directory), precision, int(threads), Path(scratch))
        questions.update({question: partial(answer, forward) for question, answer in _QUESTIONS.items()})
        questions["text_samples"] = partial(_text_samples, forward, Path(directory))

    _reply(pipe, load)
    while True:
        try:
            question, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        _reply(pipe, partial(questions[question], *arguments))


def _reply(pipe: Connection, call: Callable[[], Any]) -> None:
    try:
        answer = call()
    except Exception as error:  # whatever a contestant raises, the others go on
        lines = str(error).strip().splitlines() or ["no reason given"]
        answer = f"{type(error).__name__}: {lines[0]}"  # a string is never an answer
    pipe.send(answer)


Batches = list[tuple[np.ndarray, np.ndarray]]


def _outputs(forward: Forward, batches: Batches) -> list[np.ndarray]:
    """The last hidden states."""
    return [np.asarray(forward(*batch)) for batch in batches]


def _samples(forward: Forward, batches: Batches, seconds: float, warm: bool) -> list[float]:
    """Seconds of forwards, one batch after the other; where not ``warm``, each shape is first run twice."""
    if not warm:
        for batch in batches * 2:
            forward(*batch)
    turn = iter(range(10**9))
    return timing.samples(lambda: forward(*batches[next(turn) % len(batches)]), seconds)


def _text_samples(forward: Forward, directory: Path, texts: list[list[str]], seconds: float) -> list[float]:
    """Seconds from a list of strings to its last hidden states; every contestant has the same tokeniser."""
    tokenizer = Tokenizer.from_directory(directory)

    def run(group: list[str]) -> None:
        forward(*pad([e.ids for e in tokenizer.encode_batch(group, truncation=True, max_length=512)]))

    for group in texts:
        run(group)
    turn = iter(range(10**9))
    return timing.samples(lambda: run(texts[next(turn) % len(texts)]), seconds)


def _memory_of_shapes(forward: Forward, shapes: list[tuple[int, int]], every: int) -> list[float]:
    """Resident MiB after each ``every`` of the shapes."""
    resident = []
    for i, (batch, tokens) in enumerate(shapes, 1):
        ids = np.full((batch, tokens), i % 100, np.int64)
        forward(ids, np.ones_like(ids))
        if i % every == 0:
            resident.append(_status_mib("VmRSS"))
    return resident


def _peak_memory(forward: Forward) -> float:
    """Peak resident MiB of the process so far."""
    return _status_mib("VmHWM")


def _load(forward: Forward, batches: Batches, rate: float, seconds: float) -> list[float]:
    """Latencies, waiting included, of requests that arrive at random, ``rate`` a second, whatever the server does.

    One request at a time, first come first served. What is still waiting at the end counts with the wait it had.
    """
    rng = np.random.default_rng(int(rate * 1000))
    arrivals = np.cumsum(rng.exponential(1 / rate, max(1, int(rate * seconds))))
    latencies = []
    begin = time.perf_counter()
    for i, arrival in enumerate(arrivals):
        if (early := begin + arrival - time.perf_counter()) > 0:
            time.sleep(early)
        elif time.perf_counter() - begin > 2 * seconds:  # overloaded: the queue only grows
            latencies += [time.perf_counter() - begin - late for late in arrivals[i:]]
            break
        forward(*batches[i % len(batches)])
        latencies.append(time.perf_counter() - begin - arrival)
    return latencies


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


_QUESTIONS = {
    "outputs": _outputs,
    "samples": _samples,
    "memory_of_shapes": _memory_of_shapes,
    "peak_memory": _peak_memory,
    "load": _load,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
