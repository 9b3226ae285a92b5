"""One contestant in its own process, called through a pipe: its outputs, its latency, its memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from itertools import cycle
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.engines import Contestant, Forward
from benchmarks.workloads import pad
from distilfast.tokenizer import Tokenizer

TIMEOUT = 600.0
"""Seconds for one call: loading, compiling for a shape, or measuring; after that the process is killed."""

Batch = tuple[Any, Any]
"""(ids, mask)."""


class Failure(Exception):
    """What a contestant raised, in one sentence."""


class Worker:
    """A contestant's process, and the pipe to it."""

    def __init__(
        self, contestant: Contestant, directory: Path, threads: int, scratch: Path, packed: Path | None = None
    ) -> None:
        """Start the process; ``load`` waits until it is ready.

        ``packed``: where distilfast keeps packed weights; None for a folder of this run, never the user's.
        """
        self.contestant = contestant
        self.detail = ""
        self._pipe, theirs = Pipe()
        words = [*astuple(contestant), directory, threads, scratch, theirs.fileno()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *map(str, words)],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"DISTILFAST_CACHE": str(packed or scratch / "packed")},
        )
        theirs.close()

    def load(self) -> None:
        """Wait until the contestant is loaded; raises Failure."""
        self.detail = self._answer()["detail"]

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method of ``Runner`` in the process, and wait for its result; raises Failure."""
        try:
            self._pipe.send((method, arguments))
        except (OSError, ValueError):
            raise Failure("The process has ended.") from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(TIMEOUT):
                self.close()
                raise Failure(f"There was no answer within {TIMEOUT:.0f} s.")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise Failure(f"The process ended with status {self._process.wait()}.") from None
        if isinstance(answer, str):
            raise Failure(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


class Runner:
    """A loaded contestant, and the measurements of it."""

    def __init__(self, forward: Forward, contestant: Contestant, directory: Path) -> None:
        """Clocks and transfers are those of the contestant's device."""
        self._forward = forward
        self._on_gpu = contestant.device == "cuda"
        self._tokenizer = Tokenizer.from_directory(directory)

    def outputs(self, batches: list[Batch]) -> list[np.ndarray]:
        """The last hidden states."""
        return [self._answer(batch) for batch in batches]

    def samples(self, batches: list[Batch], seconds: float, warm: bool, cold_l2: bool = False) -> list[float]:
        """Seconds of forwards alone, one batch after the other; where not ``warm``, each shape is first run twice.

        The inputs are on the contestant's device already, and its outputs stay there.
        """
        placed = [self._placed(batch) for batch in batches]
        for batch in [] if warm else placed * 2:
            self._forward(*batch)
        inputs = cycle(placed)
        return timing.samples(lambda: self._forward(*next(inputs)), seconds, len(placed), self._clock(cold_l2))

    def text_samples(self, texts: list[list[str]], seconds: float, warm: bool) -> list[float]:
        """Seconds from a list of strings to its last hidden states; every contestant has the same tokeniser."""

        def run(group: list[str]) -> None:
            encodings = self._tokenizer.encode_batch(group, truncation=True, max_length=512)
            self._answer(pad([encoding.ids for encoding in encodings]))

        for group in [] if warm else texts:
            run(group)
        groups = cycle(texts)
        return timing.samples(lambda: run(next(groups)), seconds, len(texts))

    def memory_of_shapes(self, shapes: list[tuple[int, int]], every: int, seconds: float) -> list[float]:
        """Resident MiB after each ``every`` of the shapes, as many as ``seconds`` allow, two readings at least."""
        for batch in (1, 2):  # what is compiled on first use is compiled now
            self._answer(_ones(batch, 8))
        resident = []
        end = time.perf_counter() + seconds
        for i, shape in enumerate(shapes, 1):
            self._answer(_ones(*shape))
            if i % every == 0:
                resident.append(_status_mib("VmRSS"))
                if len(resident) >= 2 and time.perf_counter() > end:
                    break
        return resident

    def peak_memory(self) -> float:
        """Peak resident MiB of the process so far."""
        return _status_mib("VmHWM")

    def load(self, batches: list[Batch], rate: float, seconds: float) -> list[float]:
        """Latencies, waiting included, of requests that arrive at random, ``rate`` a second, whatever the server does.

        One request at a time, in the order of arrival. Requests still waiting at the end count with their wait so far.
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
            self._answer(batches[i % len(batches)])
            latencies.append(time.perf_counter() - begin - arrival)
        return latencies

    def _answer(self, batch: Batch) -> np.ndarray:
        """From arrays of this process to an array of this process."""
        hidden = self._forward(*self._placed(batch))
        return hidden.float().cpu().numpy() if self._on_gpu else np.asarray(hidden)

    def _placed(self, batch: Batch) -> Batch:
        if not self._on_gpu:
            return batch
        import torch

        ids, mask = batch
        return torch.from_numpy(ids).cuda(), None if mask.all() else torch.from_numpy(mask).cuda()

    def _clock(self, cold_l2: bool) -> timing.Clock:
        if not self._on_gpu:
            return timing.wall
        import torch

        return timing.CudaClock(torch, cold_l2)


def main(*words: str) -> None:
    """The process: load, then serve calls until the pipe is closed."""
    warnings.simplefilter("ignore")
    *who, directory, threads, scratch, pipe_number = words
    contestant, pipe = Contestant(*who), Connection(int(pipe_number))
    runners: list[Runner] = []

    def load() -> dict[str, str]:
        forward, detail = contestant.module.load(contestant, Path(directory), int(threads), Path(scratch))
        runners.append(Runner(forward, contestant, Path(directory)))
        return {"detail": detail}

    _reply(pipe, load)
    for method, arguments in _calls(pipe):
        _reply(pipe, partial(getattr(runners[0], method), *arguments))


def _calls(pipe: Connection) -> Iterator[tuple[str, tuple[Any, ...]]]:
    while True:
        try:
            yield pipe.recv()
        except (EOFError, ConnectionError):
            return


def _reply(pipe: Connection, call: Callable[[], Any]) -> None:
    try:
        answer = call()
    except Exception as error:  # one contestant's error does not stop the others
        lines = str(error).strip().splitlines() or ["no reason given"]
        answer = f"{type(error).__name__}: {lines[0]}"  # a string is an error
    pipe.send(answer)


def _ones(batch: int, tokens: int) -> Batch:
    ids = np.full((batch, tokens), 100, np.int64)
    return ids, np.ones_like(ids)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main(*sys.argv[1:])
