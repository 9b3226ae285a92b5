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
    cases = [case for case in workloads.of_latency(run.device, run.quick) if not run.cases or case.name in run.cases]
    config = ModelConfig.from_file(run.directory / "config.json")
    equal = [case for case in cases if isinstance(case, workloads.Case) and not case.ragged]
    tokens = {case.name: case.batch * case.tokens for case in equal}
    call = _Call("samples", lambda case: case.batches(run.directory), (cold_l2,))
    program = roofs.program(run.threads) if run.device == "cpu" else ""
    try:
        read_state = None if isinstance(program, str) else program.state
        for each in _interleaved(run, what, cases, call, read_state):
            if each["what"] == what and each["case"] in tokens:
                each |= _linear_work(config, tokens[each["case"]], each["precision"])
                each |= _share_of_roof(each)
            yield each
    finally:
        if not isinstance(program, str):
            program.close()


UNITS = {
    "fp32": {"fp32_fma": 1, "bf16_amx": 6},
    "bf16x3": {"fp32_fma": 1, "bf16_amx": 3},
    "bf16": {"fp32_fma": 1, "bf16_dot": 1, "bf16_amx": 1},
    "int8": {"int8_vnni": 1, "int8_amx": 1},
}
"""The units that can compute a precision, and how many of their products one of its products takes."""


def _share_of_roof(row: Row) -> Row:
    """``roof_ms``, what the linears take at the measured peaks, and its share of the median; nothing without a state.

    The roof is the longer of two times: that of the operations on the fastest unit, and that of reading the weights.
    """
    measured = row.get("state", {}).get("giga_operations", {})
    units = UNITS.get(row["precision"], {})
    peaks = [measured[unit] / products for unit, products in units.items() if unit in measured]
    if not peaks:
        return {}
    speed = row["state"]["read_gb_by_mib"]["170"]
    roof = max(row["linear_flops"] / max(peaks), row["linear_bytes"] / speed) * 1e-6
    return {"roof_ms": roof, "share_of_roof": roof / row["p50_ms"]}


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


def _interleaved(
    run: Run, what: str, cases: Sequence[Any], call: _Call, read_state: Callable[[], roofs.State] | None = None
) -> Iterator[Row]:
    """Rounds of samples of every contestant on every case; a round is a short time of each, one after the other.

    With ``read_state`` the machine's state is read around every round, and only rounds of one state are counted.
    """
    least, most = run.plan.rounds
    before = read_state() if read_state else None
    best = dict(before["giga_operations"]) if before else {}
    with _bar(run, what, len(cases) * most) as advance:
        for case in cases:
            readings: dict[Worker, list[list[float]]] = {worker: [] for worker in run.workers}
            states: list[tuple[roofs.State, roofs.State]] = []
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
                if read_state and before:
                    after = read_state()
                    states.append((before, after))
                    before = after
                    best = {unit: max(peak, after["giga_operations"][unit]) for unit, peak in best.items()}
                advance(case.name)
            facts = _of_one_state(readings, states, best) if states else {}
            yield from _latency_rows(what, case.name, readings, run.threads, facts)


NEAR_NS = 80.0
"""A ping below it is within a core complex, above it between two: 20 to 30 and 110 to 290 ns were seen."""
BUSY = 0.8
"""A peak below this share of the run's best: something else computes on the cores. (Half of it was seen.)"""


def _of_one_state(
    readings: dict[Worker, list[list[float]]],
    states: Sequence[tuple[roofs.State, roofs.State]],
    best: dict[str, float],
) -> Row:
    """Leaves only the rounds of the state that most rounds had; ``state``, their medians, and what was left out.

    A round's state is "near" or "far" where its ping was so before and after it, and "busy" where a peak was far below
    the ``best``; rounds of such a state are the answer only where there are no others.
    """
    kinds = [_kind({_kind_of(state, best) for state in around}) for around in states]
    kind = max(("near", "far"), key=kinds.count)
    if kind not in kinds:
        kind = max(("busy", "mixed"), key=kinds.count)
    kept = [i for i, each in enumerate(kinds) if each == kind]
    for found in readings.values():
        found[:] = [found[i] for i in kept]
    some = [state for i in kept for state in states[i]]

    def medians(what: str) -> dict[str, float]:
        return {name: float(np.median([each[what][name] for each in some])) for name in some[0][what]}

    state = {"kind": kind, "ping_ns": float(np.median([each["ping_ns"] for each in some]))}
    state |= {what: medians(what) for what in ("giga_operations", "read_gb_by_mib")}
    return {"state": state, "rounds_of_another_state": len(states) - len(kept)}


def _kind_of(state: roofs.State, best: dict[str, float]) -> str:
    if any(peak < BUSY * best[unit] for unit, peak in state["giga_operations"].items()):
        return "busy"
    return "near" if state["ping_ns"] < NEAR_NS else "far"


def _kind(kinds: set[str]) -> str:
    """Of a round, by what was there before and after it."""
    if "busy" in kinds:
        return "busy"
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _latency_rows(
    what: str, case: str, readings: dict[Worker, list[list[float]]], threads: int, more: Row
) -> Iterator[Row]:
    ours = {worker: found for worker, found in readings.items() if worker.contestant.library == OURS}
    for worker, theirs in readings.items():
        against = {
            str(mine.contestant).removeprefix(f"{OURS} "): _ratio(theirs, found)
            for mine, found in ours.items()
            if mine is not worker
        }
        everything = [reading for each in theirs for reading in each]
        facts = {"case": case, "threads": threads, "rounds": len(theirs), "samples": len(everything)}
        yield row(what, worker, **facts, **timing.percentiles(everything), ratio_to_distilfast=against, **more)


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
