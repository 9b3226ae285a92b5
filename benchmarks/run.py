"""Latency, memory and start-up beside other engines: parity first, then time.

    python -m benchmarks.run --quick            about three minutes
    python -m benchmarks.run                    everything, about an hour
    python -m benchmarks.run --only latency --contestants "distilfast fp32,onnxruntime fp32"

Contestants run in processes of their own, with the same weights, ids and threads, and take turns in short rounds, so
that a busy moment hits all of them. Without --model a full-size DistilBERT with seeded weights is written first.
Rows go to benchmarks/results/, and `python -m benchmarks.report` makes tables and plots of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import measure, rows, tables
from benchmarks.engines import Contestant, contestants
from benchmarks.worker import Failure, Worker
from distilfast import machine
from distilfast.synthetic import write_checkpoint

QUICK_PRECISIONS = ("fp32", "int8")
QUICK_MEASUREMENTS = ("roof", "latency", "text", "cold_start")
SLOW_TO_PREPARE = ("torch_compile",)


@dataclass(frozen=True)
class Run:
    """What every measurement is given."""

    workers: list[Worker]
    directory: Path
    threads: int
    scratch: Path
    quick: bool
    progress: Progress


def main() -> None:
    """Prepare the contestants, measure, print, and append the rows."""
    arguments = _arguments()
    console = Console(markup=False, highlight=False)
    with tempfile.TemporaryDirectory() as scratch, Progress(console=console, transient=True) as progress:
        directory = _checkpoint(arguments.model, Path(scratch))
        wanted = _contestants(arguments.contestants, arguments.quick)
        with _workers(wanted, directory, arguments.threads, Path(scratch), progress) as (workers, absent):
            run = Run(workers, directory, arguments.threads, Path(scratch), arguments.quick, progress)
            found = absent + _measure_all(
                run, arguments.only or (QUICK_MEASUREMENTS if arguments.quick else measure.ALL)
            )
    origin = rows.provenance()
    found = [{**row, "model": directory.name if arguments.model else "synthetic", **origin} for row in found]
    out = arguments.out or rows.RESULTS / f"{date.today()}-{origin['commit']}.jsonl"
    rows.append(out, found)
    tables.show(found, console)
    console.print(f"rows: {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few shapes, fp32 and int8: about three minutes")
    parser.add_argument("--model", type=Path, help="a local DistilBERT or BERT checkpoint")
    parser.add_argument("--threads", type=int, default=machine.info()["threads"])
    parser.add_argument("--contestants", help='comma-separated, such as "distilfast fp32,onnxruntime int8"')
    parser.add_argument("--only", choices=list(measure.ALL), nargs="+", help="these measurements")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    return parser.parse_args()


def _checkpoint(model: Path | None, scratch: Path) -> Path:
    if model is not None:
        return model
    from benchmarks.workloads import DATA

    vocabulary = DATA / "vocab-cased"
    return write_checkpoint(
        scratch / "synthetic", task="feature-extraction", vocabulary=vocabulary if vocabulary.is_dir() else None
    )


def _contestants(names: str | None, quick: bool) -> list[Contestant]:
    everybody = contestants()
    if names is None:
        return [
            c for c in everybody if not quick or (c.precision in QUICK_PRECISIONS and c.name not in SLOW_TO_PREPARE)
        ]
    known = {str(contestant): contestant for contestant in everybody}
    asked = [name.strip() for name in names.split(",")]
    if unknown := [name for name in asked if name not in known]:
        raise SystemExit(f"error: {', '.join(unknown)} unknown; there are {', '.join(known)}.")
    return [known[name] for name in asked]


@contextmanager
def _workers(
    wanted: list[Contestant], directory: Path, threads: int, scratch: Path, progress: Progress
) -> Iterator[tuple[list[Worker], list[rows.Row]]]:
    """Those that could be loaded, and a row for each that could not. One at a time: they share what they prepare."""
    workers: list[Worker] = []
    absent: list[rows.Row] = []
    task = progress.add_task("prepare", total=len(wanted))
    try:
        for contestant in wanted:
            progress.update(task, description=f"prepare {contestant}")
            reason = contestant.module.unavailable(contestant.precision)
            if reason is None:
                worker = Worker(contestant, directory, threads, scratch)
                workers.append(worker)
                try:
                    worker.answer()
                except Failure as failure:
                    workers.remove(worker)
                    worker.close()
                    reason = str(failure)
            if reason is not None:
                absent.append(measure.row("absent", contestant, reason=reason))
            progress.advance(task)
        yield workers, absent
    finally:
        progress.remove_task(task)
        for worker in workers:
            worker.close()


def _measure_all(run: Run, only: Iterable[str]) -> list[rows.Row]:
    """Parity always; whoever fails it is not timed."""
    found = measure.parity(run)
    wrong = {(row["contestant"], row["precision"]) for row in found if row["verdict"] == "wrong"}
    for worker in list(run.workers):
        if (worker.contestant.name, worker.contestant.precision) in wrong:
            run.workers.remove(worker)
            worker.close()
    for name in only:
        measurement: Callable[[Any], list[rows.Row]] = measure.ALL[name]
        found += measurement(run)
    return found


if __name__ == "__main__":
    main()
