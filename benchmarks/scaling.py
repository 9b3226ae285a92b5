"""How a forward scales with the threads of an engine: measured on this machine's cores, predicted for more of them.

    python -m benchmarks.scaling                      one row for each measurement and prediction, into results/
    python -m benchmarks.scaling --rounds 5           fewer rounds

The prediction counts what csrc/cpu/parallel.cpp does: the jobs of a forward, the tasks of each, the bytes of weights
that it reads, and the cache lines that go between cores to open and close a job. Its constants are this machine's: what
the forward takes on one thread, the speed of reading, the ping between two cores. It is an estimate for a processor of
many such cores with `--bandwidth` GB/s of memory in all; csrc/cpu/THREADS.md says what follows from it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from rich.console import Console

from benchmarks import roofs, rows, tables
from distilfast import Engine, PackedBatch, machine
from distilfast.config import ModelConfig
from distilfast.synthetic import write_checkpoint

CASES = ((1, 16), (1, 128), (8, 128), (64, 128))
PRECISIONS = ("fp32", "int8")
PREDICTED = (2, 4, 8, 16, 32, 64)

# Of csrc/cpu: the columns of a panel, the panels and tasks of parallel.cpp, the rows of vec.h, encoder.cpp's tokens.
PANEL, MAX_PANELS, TASKS_PER_THREAD, MC, CHUNK = 48, 8, 4, 256, 512


@dataclass(frozen=True)
class Job:
    """What a team does between two barriers: equal tasks, the operations of all of them, the weights that they read."""

    tasks: int
    operations: float
    weight_bytes: float


@dataclass(frozen=True)
class Machine:
    """A core's operations a second in a forward, the bytes a second of all, and the seconds of a line between two."""

    core_operations: float
    bandwidth: float
    ping: float


def jobs(config: ModelConfig, batch: int, length: int, precision: str, threads: int) -> Iterator[Job]:
    """The jobs of a forward, chunk by chunk."""
    per_chunk = max(1, CHUNK // length)
    for first in range(0, batch, per_chunk):
        yield from _chunk(config, min(per_chunk, batch - first), length, precision, threads)


def _chunk(config: ModelConfig, sequences: int, length: int, precision: str, threads: int) -> Iterator[Job]:
    width, ffn, tokens = config.hidden_size, config.ffn_size, sequences * length
    size = {"fp32": 4, "int8": 1}.get(precision, 2)
    slices = max(1, min(tokens // 4, TASKS_PER_THREAD * threads))
    by_rows = Job(slices, 0.0, 0.0)

    def linear(columns: int, depth: int) -> Job:
        panels, row_slices = ceil(columns / PANEL), ceil(tokens / MC)
        wanted = ceil(TASKS_PER_THREAD * threads / row_slices) if threads > 1 else 1
        panel_slices = min(panels, max(ceil(panels / MAX_PANELS), wanted))
        return Job(row_slices * panel_slices, 2.0 * tokens * columns * depth, columns * depth * size)

    # A sequence is cut where it would be more than a thread's share of the work, into pieces of 64 queries at least.
    pieces = sequences * max(1, min(length // 64, ceil(TASKS_PER_THREAD * threads / (config.num_heads * sequences))))
    attention = Job(pieces * config.num_heads, 4.0 * tokens * length * width, 0.0)
    packs = [by_rows] if precision != "fp32" else []
    yield by_rows  # embed
    for _ in range(config.num_layers):
        yield from (linear(3 * width, width), attention, *packs, linear(width, width), by_rows)
        yield from (linear(ffn, width), *packs, linear(width, ffn), by_rows)


def seconds(work: Sequence[Job], of: Machine, threads: int) -> float:
    """Each job takes as long as its busiest thread, or as reading its weights, and is opened and closed.

    Opening is one line that every worker reads; each enters and leaves by adding to one counter, one after the other.
    """
    busiest = (ceil(job.tasks / threads) / job.tasks * job.operations / of.core_operations for job in work)
    computed = sum(max(time, job.weight_bytes / of.bandwidth) for time, job in zip(busiest, work, strict=True))
    lines = 1 + 2 * (threads - 1) if threads > 1 else 0
    return computed + len(work) * lines * of.ping


def calibrated(work: Sequence[Job], one_thread: float, bandwidth: float, ping: float) -> Machine:
    """The machine on which ``work`` takes ``one_thread`` seconds on one thread; ``bandwidth`` in bytes a second."""
    return Machine(sum(job.operations for job in work) / one_thread, bandwidth, ping)


def main() -> None:
    arguments = _arguments()
    console = Console(markup=False, highlight=False)
    origin = {"model": "synthetic", **rows.provenance()}
    out = arguments.out or rows.default_file(origin)
    found = []
    with tempfile.TemporaryDirectory() as scratch, console.status("measuring") as status:
        checkpoint = write_checkpoint(Path(scratch) / "model", task="feature-extraction")
        for precision in PRECISIONS:
            for row in _rows(checkpoint, precision, arguments):
                status.update(f"{row['case']} {precision}, threads {row['threads']}")
                found.append({**row, **origin})
    rows.append(out, found)
    tables.show(found, console)
    console.print(f"rows: {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bandwidth", type=float, default=200.0, help="GB/s of the predicted processor (200)")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    return parser.parse_args()


def _rows(checkpoint: Path, precision: str, arguments: argparse.Namespace) -> Iterator[rows.Row]:
    most = machine.info()["threads"]
    engines = {
        threads: Engine.from_pretrained(checkpoint, precision=precision, threads=threads)
        for threads in range(1, most + 1)
    }
    config = engines[1].config
    state = roofs.measure(most)
    ping, reading = state["ping_ns"] * 1e-9, state["read_gb_by_mib"]["170"] * 1e9
    for batch, length in CASES:
        times = _interleaved(engines, batch, length, arguments.rounds, config.vocab_size)
        row = {"what": "scaling", "case": f"{batch}x{length}", "precision": precision, "state": state}
        alone = list(jobs(config, batch, length, precision, 1))
        for threads, ms in times.items():
            yield row | {"threads": threads, "p50_ms": ms, "speed_up": times[1] / ms}
        for threads in PREDICTED:
            speed = reading if threads <= most else arguments.bandwidth * 1e9
            here = calibrated(alone, times[1] * 1e-3, speed, ping)
            ms = seconds(list(jobs(config, batch, length, precision, threads)), here, threads) * 1e3
            yield row | {
                "threads": threads,
                "predicted_ms": ms,
                "speed_up": times[1] / ms,
                "bandwidth_gb": speed * 1e-9,
            }


def _interleaved(engines: dict[int, Engine], batch: int, length: int, rounds: int, vocabulary: int) -> dict[int, float]:
    """Median ms by threads; the engines take turns."""
    rng = np.random.default_rng([batch, length])
    ids = PackedBatch.from_sequences(rng.integers(0, vocabulary, (batch, length)).tolist())
    taken: dict[int, list[float]] = {threads: [] for threads in engines}
    for _ in range(rounds + 1):
        for threads, engine in engines.items():
            begin = perf_counter()
            engine.encode(ids)
            taken[threads].append((perf_counter() - begin) * 1e3)
    return {threads: median(times[1:]) for threads, times in taken.items()}


if __name__ == "__main__":
    main()
