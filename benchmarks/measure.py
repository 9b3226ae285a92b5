"""The measurements: each takes the run and returns rows."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import roofs, timing, workloads
from benchmarks.engines import Contestant
from benchmarks.rows import Row
from benchmarks.worker import Failure, Worker
from distilfast import Engine
from distilfast.config import ModelConfig

if TYPE_CHECKING:
    from benchmarks.run import Run

OURS = "distilfast"
WRONG = {"fp32": 1e-5, "bf16": 5e-2, "fp16": 2e-2, "int8": 0.5}
"""Relative error of the last hidden state from which on a contestant does not compute this model in its precision.

Wide, since it only tells wrong from right: a tanh-GELU or a bf16 run behind an fp32 name is off by 1e-3 and more, a
graph that lost a mask by 1. How good an int8 is, the error beside it says.
"""


def row(what: str, contestant: Contestant, **facts: Any) -> Row:
    """One result, without its provenance."""
    return {"what": what, "contestant": contestant.name, "precision": contestant.precision, **facts}


def parity(run: Run) -> list[Row]:
    """Relative error against float64, on a batch with padding in it."""
    batches = workloads.padded_check(run.directory)
    truth = Engine.from_pretrained(run.directory, task="feature-extraction", backend="reference", precision="fp64")
    (ids, mask), kept = batches[0], batches[0][1] == 1
    wanted = truth(ids, mask).last_hidden_state[kept]
    found = []
    for worker in run.workers:
        got = worker("outputs", batches)[0][kept].astype(np.float64)
        error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        verdict = "right" if error <= WRONG[worker.contestant.precision] else "wrong"  # a NaN is wrong
        found.append(row("parity", worker.contestant, relative_error=error, verdict=verdict))
    return found


def latency(run: Run) -> list[Row]:
    """Forwards of equal lengths, and of real text at its natural lengths."""
    cases: list[Any] = list(workloads.QUICK if run.quick else workloads.GRID)
    if workloads.unavailable() is None:
        cases += workloads.RAGGED[:1] if run.quick else workloads.RAGGED
    found = _in_turn(run, "latency", cases, lambda case: ("samples", case.batches(run.directory)))
    config = ModelConfig.from_file(run.directory / "config.json")
    shapes = {case.name: case.batch * case.tokens for case in cases if isinstance(case, workloads.Case)}
    for each in found:
        if each["what"] == "latency" and each["case"] in shapes:
            each |= _linear_work(config, shapes[each["case"]], each["precision"])
    return found


def _linear_work(config: ModelConfig, tokens: int, precision: str) -> dict[str, float]:
    """Operations of the linears (a multiply-add is two) and the bytes of their weights, for the roofline."""
    weights = config.num_layers * config.hidden_size * (4 * config.hidden_size + 2 * config.ffn_size)
    return {
        "linear_flops": 2.0 * weights * tokens,
        "linear_bytes": weights * {"fp32": 4.0, "int8": 1.0}.get(precision, 2.0),
    }


def text(run: Run) -> list[Row]:
    """From strings to last hidden states, the tokeniser included."""
    if workloads.unavailable() is not None:
        return []
    cases = [workloads.Ragged("clinc150", batch=1, count=16), workloads.Ragged("clinc150")]
    return _in_turn(run, "text", cases, lambda case: ("text_samples", case.texts()))


def cold_start(run: Run) -> list[Row]:
    """Seconds from the start of a process to its first answer, everything prepared and in the page cache."""
    batches = workloads.Case(1, 16).batches(run.directory)
    rounds = 1 if run.quick else 7
    readings: dict[Contestant, list[float]] = {worker.contestant: [] for worker in run.workers}
    with _Bar(run, "cold start", rounds * len(readings)) as advance:
        for _ in range(rounds):
            for contestant, found in readings.items():
                begin = time.perf_counter()
                worker = Worker(contestant, run.directory, run.threads, run.scratch)
                worker.answer()
                worker("outputs", batches)
                found.append(time.perf_counter() - begin)
                worker.close()
                advance()
    return [row("cold_start", c, seconds=float(np.median(found)), samples=len(found)) for c, found in readings.items()]


def memory(run: Run) -> list[Row]:
    """Resident MiB while random shapes pass by, and at most, in a fresh process: preparing took memory of its own."""
    rng = np.random.default_rng(0)
    count, every = 10_000, 100
    shapes = [(int(b), int(t)) for b, t in zip(rng.integers(1, 5, count), rng.integers(1, 65, count), strict=True)]
    found = []
    with _Bar(run, "memory", len(run.workers)) as advance:
        for contestant in [worker.contestant for worker in run.workers]:
            worker = Worker(contestant, run.directory, run.threads, run.scratch)
            worker.answer()
            resident = worker("memory_of_shapes", shapes, every)
            peak = worker("peak_memory")
            found.append(row("memory", contestant, resident_mib=resident, peak_mib=peak, shapes=count))
            worker.close()
            advance()
    return found


def neighbour(run: Run) -> list[Row]:
    """1x16 and 1x128 while one busy process runs on every core."""
    stop = multiprocessing.get_context("spawn").Event()
    neighbours = [
        multiprocessing.get_context("spawn").Process(target=_be_busy, args=(stop,), daemon=True)
        for _ in range(run.threads)
    ]
    for process in neighbours:
        process.start()
    try:
        cases = [workloads.Case(1, 16), workloads.Case(1, 128)]
        return _in_turn(run, "neighbour", cases, lambda case: ("samples", case.batches(run.directory)))
    finally:
        stop.set()
        for process in neighbours:
            process.join()


def load(run: Run) -> list[Row]:
    """Latency, waiting included, of short requests that arrive at fixed mean rates."""
    case = workloads.Ragged("clinc150", batch=1, count=64)
    if workloads.unavailable() is not None:
        return []
    batches = case.batches(run.directory)
    rates, seconds = (10, 20, 40, 60, 80, 100, 120, 150, 200), 10.0
    found = []
    with _Bar(run, "load", len(rates) * len(run.workers)) as advance:
        for rate in rates:
            for worker in run.workers:
                worker("samples", batches, 0.0, False)
                latencies = worker("load", batches, float(rate), seconds)
                found.append(row("load", worker.contestant, rate=rate, **timing.percentiles(latencies)))
                advance()
    return found


def roof(run: Run) -> list[Row]:
    """What the machine can do at most; it belongs to no contestant."""
    return [{"what": "roof", **roofs.measure(run.threads)}]


ALL: dict[str, Callable[[Run], list[Row]]] = {
    "roof": roof,
    "latency": latency,
    "text": text,
    "cold_start": cold_start,
    "memory": memory,
    "neighbour": neighbour,
    "load": load,
}


def _in_turn(run: Run, what: str, cases: Sequence[Any], question: Callable[[Any], tuple[str, Any]]) -> list[Row]:
    """Rounds of samples of every contestant on every case; a round is a short time of each, one after the other."""
    rounds, seconds = (5, 0.2) if run.quick else (20, 0.5)
    found = []
    with _Bar(run, what, len(cases) * rounds) as advance:
        for case in cases:
            readings: dict[Contestant, list[list[float]]] = {}
            failed: dict[Contestant, str] = {}
            name, batches = question(case)
            for turn in range(rounds):
                for worker in run.workers:
                    if worker.contestant not in failed:
                        try:
                            warm = () if name == "text_samples" else (turn > 0,)
                            readings.setdefault(worker.contestant, []).append(worker(name, batches, seconds, *warm))
                        except Failure as failure:
                            failed[worker.contestant] = str(failure)
                            readings.pop(worker.contestant, None)
                advance(case.name)
            found += [row("absent", c, case=case.name, reason=reason) for c, reason in failed.items()]
            found += _latency_rows(what, case.name, readings, run.threads)
    return found


def _latency_rows(what: str, case: str, readings: dict[Contestant, list[list[float]]], threads: int) -> list[Row]:
    ours = {contestant: found for contestant, found in readings.items() if contestant.name == OURS}
    found = []
    for contestant, theirs in readings.items():
        against = {
            f"{ratio_to.precision}": dict(zip(("median", "low", "high"), timing.ratio(theirs, mine), strict=True))
            for ratio_to, mine in ours.items()
            if ratio_to != contestant
        }
        everything = [reading for each in theirs for reading in each]
        found.append(
            row(
                what,
                contestant,
                case=case,
                threads=threads,
                samples=len(everything),
                **timing.percentiles(everything),
                ratio_to_distilfast=against,
            )
        )
    return found


class _Bar:
    """A progress bar for the time of a measurement; gives a function that advances it."""

    def __init__(self, run: Run, name: str, total: int) -> None:
        self._progress, self._name = run.progress, name
        self._task = run.progress.add_task(name, total=total)

    def __enter__(self) -> Callable[..., None]:
        def advance(detail: str = "") -> None:
            self._progress.update(self._task, advance=1, description=f"{self._name} {detail}")

        return advance

    def __exit__(self, *_: object) -> None:
        self._progress.remove_task(self._task)


def _be_busy(stop: Any) -> None:
    """A neighbour: arithmetic until told to end."""
    x = 1.0
    while not stop.is_set():
        for _ in range(100_000):
            x = x * 1.0000001 + 1e-9
