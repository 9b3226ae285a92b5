"""The measurements: each takes a session and yields its rows as they are finished."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import roofs, timing, workloads
from benchmarks.engines import Contestant
from benchmarks.rows import Row
from benchmarks.session import Run
from benchmarks.worker import Failure, Worker
from distilfast import Engine
from distilfast.config import ModelConfig

OURS = "distilfast"
PREPARED, UNPREPARED = "prepared", "first start"
"""Cold starts: with all that a contestant prepares in place, and ours without its packed weights."""
WRONG = {"fp32": 1e-5, "bf16x3": 1e-4, "bf16": 5e-2, "fp16": 2e-2, "int8": 0.5}
"""Relative error of the last hidden state from which on a contestant does not compute this model in its precision.

Generous, since it only separates wrong from right: a tanh-GELU or a bf16 run labelled fp32 is off by 1e-3 and more, a
graph that lost a mask by 1. How good an int8 is, the error beside it says.
"""


def row(what: str, worker: Worker, **facts: Any) -> Row:
    """One result, without its provenance."""
    return {"what": what, **_who(worker.contestant), "detail": worker.detail, **facts}


def absent(contestant: Contestant, reason: str) -> Row:
    """A contestant that cannot take part, and why."""
    return {"what": "absent", **_who(contestant), "reason": reason}


def _who(contestant: Contestant) -> Row:
    return {"contestant": contestant.name, "precision": contestant.precision, "device": contestant.device}


def parity(run: Run) -> Iterator[Row]:
    """Relative error against float64, on a batch with padding in it."""
    batches = workloads.padded_check(run.directory)
    truth = Engine.from_pretrained(run.directory, task="feature-extraction", backend="reference", precision="fp64")
    (ids, mask), kept = batches[0], batches[0][1] == 1
    wanted = truth(ids, mask).last_hidden_state[kept]
    with _bar(run, "parity", len(run.workers)) as advance:
        for worker in run.workers:
            try:
                got = worker("outputs", batches)[0][kept].astype(np.float64)
            except Failure as failure:
                yield row("absent", worker, case="parity", reason=str(failure))
                continue
            error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
            verdict = "right" if error <= WRONG[worker.contestant.precision] else "wrong"  # a NaN is wrong
            yield row("parity", worker, relative_error=error, verdict=verdict)
            advance()


def latency(run: Run) -> Iterator[Row]:
    """Forwards of equal lengths, and of real text at its natural lengths; on a GPU with the L2 as it is."""
    return _latency(run, "latency", cold_l2=False)


def latency_cold_l2(run: Run) -> Iterator[Row]:
    """The same with an L2 that holds nothing of the weights; on a GPU only."""
    return _latency(run, "latency_cold_l2", cold_l2=True) if run.device == "cuda" else iter(())


def _latency(run: Run, what: str, cold_l2: bool) -> Iterator[Row]:
    cases: list[Any] = list(workloads.QUICK if run.quick else workloads.grid(run.device))
    if workloads.unavailable() is None:
        cases += workloads.RAGGED[:1] if run.quick else workloads.RAGGED
    if run.cases is not None:
        if unknown := sorted(run.cases - {case.name for case in cases}):
            raise SystemExit(
                f"error: no case {', '.join(unknown)}; there are {', '.join(case.name for case in cases)}."
            )
        cases = [case for case in cases if case.name in run.cases]
    config = ModelConfig.from_file(run.directory / "config.json")
    equal = [case for case in cases if isinstance(case, workloads.Case) and not case.ragged]
    tokens = {case.name: case.batch * case.tokens for case in equal}
    call = _Call("samples", lambda case: case.batches(run.directory), (cold_l2,))
    for each in _interleaved(run, what, cases, call):
        if each["what"] == what and each["case"] in tokens:
            each |= _linear_work(config, tokens[each["case"]], each["precision"])
        yield each


def _linear_work(config: ModelConfig, tokens: int, precision: str) -> dict[str, float]:
    """Operations of the linears (a multiply-add is two) and the bytes of their weights, for the roofline."""
    weights = config.num_layers * config.hidden_size * (4 * config.hidden_size + 2 * config.ffn_size)
    return {
        "linear_flops": 2.0 * weights * tokens,
        "linear_bytes": weights * {"fp32": 4.0, "int8": 1.0}.get(precision, 2.0),
    }


def text(run: Run) -> Iterator[Row]:
    """From strings to last hidden states, the tokeniser included."""
    if workloads.unavailable() is not None:
        return iter(())
    cases = [workloads.Ragged("clinc150", batch=1, count=16), workloads.Ragged("clinc150")]
    return _interleaved(run, "text", cases, _Call("text_samples", lambda case: case.texts()))


def cold_start(run: Run) -> Iterator[Row]:
    """Seconds from the start of a process to its first answer, all files in the page cache.

    Every contestant with all its prepared files in place; distilfast also without packed weights, which it then writes.
    """
    batches = workloads.Case(1, 16).batches(run.directory)
    readings: dict[tuple[Worker, str], list[float]] = {}
    for worker in run.workers:
        readings[worker, PREPARED] = []
        if worker.contestant.library == OURS and worker.contestant.device == "cpu":
            readings[worker, UNPREPARED] = []
    with _bar(run, "cold start", run.plan.starts * len(readings)) as advance:
        for _ in range(run.plan.starts):
            for (worker, case), found in readings.items():
                if sum(found) < run.plan.cap:
                    try:
                        found.append(_seconds_to_answer(run, worker, batches, case))
                    except Failure as failure:
                        yield row("absent", worker, case="cold_start", reason=str(failure))
                advance(f"{worker.contestant}, {case}")
    for (worker, case), found in readings.items():
        if found:
            yield row("cold_start", worker, case=case, seconds=float(np.median(found)), samples=len(found))


def _seconds_to_answer(run: Run, worker: Worker, batches: list[Any], case: str) -> float:
    with tempfile.TemporaryDirectory(dir=run.scratch) as empty:
        begin = time.perf_counter()
        with run.another(worker, Path(empty, "packed") if case == UNPREPARED else None) as fresh:
            fresh("outputs", batches)
            return time.perf_counter() - begin


def memory(run: Run) -> Iterator[Row]:
    """Resident MiB while random shapes pass by, and at most, in a fresh process: preparing took memory of its own."""
    rng = np.random.default_rng(0)
    count, every = 10_000, 100
    shapes = [(int(b), int(t)) for b, t in zip(rng.integers(1, 5, count), rng.integers(1, 65, count), strict=True)]
    with _bar(run, "memory", len(run.workers)) as advance:
        for worker in run.workers:
            try:
                with run.another(worker) as fresh:
                    resident = fresh("memory_of_shapes", shapes, every, run.plan.cap)
                    facts = {"peak_mib": fresh("peak_memory"), "shapes": every * len(resident), "cap_s": run.plan.cap}
                    yield row("memory", worker, resident_mib=resident, **facts)
            except Failure as failure:
                yield row("absent", worker, case="memory", reason=str(failure))
            advance(str(worker.contestant))


def neighbour(run: Run) -> Iterator[Row]:
    """1x16 and 1x128 while one busy process runs on every core."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    # Each on a core of its own: left to the scheduler, two of them share one for many milliseconds at a time.
    cores = sorted(os.sched_getaffinity(0))[: run.threads]
    neighbours = [context.Process(target=_be_busy, args=(stop, core), daemon=True) for core in cores]
    for process in neighbours:
        process.start()
    try:
        cases = [workloads.Case(1, 16), workloads.Case(1, 128)]
        yield from _interleaved(run, "neighbour", cases, _Call("samples", lambda case: case.batches(run.directory)))
    finally:
        stop.set()
        for process in neighbours:
            process.join()


def load(run: Run) -> Iterator[Row]:
    """Latency, waiting included, of short requests that arrive at fixed mean rates.

    A contestant that is overloaded at one rate, so that half of its requests wait for over a second, skips higher ones.
    """
    if workloads.unavailable() is not None:
        return
    batches = workloads.Ragged("clinc150", batch=1, count=64).batches(run.directory)
    serving = list(run.workers)
    with _bar(run, "load", len(run.plan.rates) * len(serving)) as advance:
        for rate in run.plan.rates:
            advance(f"{rate}/s", steps=len(run.workers) - len(serving))
            for worker in list(serving):
                try:
                    worker("samples", batches, 0.0, True)
                    found = timing.percentiles(worker("load", batches, float(rate), run.plan.arrivals))
                    yield row("load", worker, rate=rate, seconds=run.plan.arrivals, **found)
                except Failure as failure:
                    yield row("absent", worker, case=f"load {rate}/s", reason=str(failure))
                    found = {"p50_ms": float("inf")}
                if found["p50_ms"] > 1000:
                    serving.remove(worker)
                advance(f"{rate}/s {worker.contestant}")


def roof(run: Run) -> Iterator[Row]:
    """The peaks of the machine; they belong to no contestant."""
    found = roofs.measure_gpu() if run.device == "cuda" else roofs.measure(run.threads)
    yield {"what": "roof", "device": run.device, **found}


ALL: dict[str, Callable[[Run], Iterator[Row]]] = {
    "roof": roof,
    "latency": latency,
    "latency_cold_l2": latency_cold_l2,
    "text": text,
    "cold_start": cold_start,
    "memory": memory,
    "neighbour": neighbour,
    "load": load,
}


@dataclass(frozen=True)
class _Call:
    """A method of ``worker.Runner``: ``name(inputs(case), seconds, warm, *options)`` gives the seconds of calls."""

    name: str
    inputs: Callable[[Any], Any]
    options: tuple[Any, ...] = ()


def _interleaved(run: Run, what: str, cases: Sequence[Any], call: _Call) -> Iterator[Row]:
    """Rounds of samples of every contestant on every case; a round is a short time of each, one after the other."""
    least, most = run.plan.rounds
    with _bar(run, what, len(cases) * most) as advance:
        for case in cases:
            readings: dict[Worker, list[list[float]]] = {worker: [] for worker in run.workers}
            inputs, end = call.inputs(case), None
            for count in range(most):
                if count >= least and time.perf_counter() > end:
                    advance(case.name, steps=most - count)
                    break
                for worker in list(readings):
                    try:
                        arguments = (inputs, run.plan.sample, count > 0, *call.options)
                        readings[worker].append(worker(call.name, *arguments))
                    except Failure as failure:
                        del readings[worker]
                        yield row("absent", worker, case=case.name, reason=str(failure))
                end = end or time.perf_counter() + run.plan.case  # the first round warms up and compiles as well
                advance(case.name)
            yield from _latency_rows(what, case.name, readings, run.threads)


def _latency_rows(what: str, case: str, readings: dict[Worker, list[list[float]]], threads: int) -> Iterator[Row]:
    ours = {worker: found for worker, found in readings.items() if worker.contestant.library == OURS}
    for worker, theirs in readings.items():
        against = {
            str(mine.contestant).removeprefix(f"{OURS} "): _ratio(theirs, found)
            for mine, found in ours.items()
            if mine is not worker
        }
        everything = [reading for each in theirs for reading in each]
        facts = {"case": case, "threads": threads, "rounds": len(theirs), "samples": len(everything)}
        yield row(what, worker, **facts, **timing.percentiles(everything), ratio_to_distilfast=against)


def _ratio(theirs: list[list[float]], ours: list[list[float]]) -> dict[str, float]:
    return dict(zip(("median", "low", "high"), timing.ratio(theirs, ours), strict=True))


@contextmanager
def _bar(run: Run, name: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar for the time of a measurement; gives a function that advances it."""
    task = run.progress.add_task(name, total=total)

    def advance(detail: str = "", steps: int = 1) -> None:
        run.progress.update(task, advance=steps, description=f"{name} {detail}")

    try:
        yield advance
    finally:
        run.progress.remove_task(task)


def _be_busy(stop: Any, core: int) -> None:
    """A neighbour: arithmetic on one core until ``stop`` is set."""
    os.sched_setaffinity(0, {core})
    x = 1.0
    while not stop.is_set():
        for _ in range(100_000):
            x = x * 1.0000001 + 1e-9
