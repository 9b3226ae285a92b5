"""Latency, memory and start-up beside other engines: parity first, then time.

    python -m benchmarks.run --quick            a few minutes
    python -m benchmarks.run                    everything
    python -m benchmarks.run --device cuda      the same on a GPU, with CUDA events, and with a cold L2 as well
    python -m benchmarks.run --only latency --contestants "distilfast fp32,onnxruntime fp32"

Contestants run in processes of their own, with the same weights, ids and threads, and are timed alternately in short
rounds, so that a busy moment affects all of them. Without --model a full-size DistilBERT with seeded weights is written
first. Each row is appended to a file of benchmarks/results/ as soon as it is measured; several runs with the same --out
make one report. `python -m benchmarks.report` makes tables and plots.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import measure, rows, session, tables, workloads
from benchmarks.engines import DEVICES, Contestant, contestants
from benchmarks.session import Plan, Run
from benchmarks.worker import Failure, Worker
from distilfast import machine
from distilfast.synthetic import write_checkpoint

QUICK_PRECISIONS = ("fp32", "int8")
QUICK_MEASUREMENTS = ("roof", "latency", "text", "cold_start")
SLOW_TO_PREPARE = ("torch_compile", "torchao", "zentorch")


def main() -> None:
    """Prepare the contestants, measure, append each row, print the tables."""
    arguments = _arguments()
    console = Console(markup=False, highlight=False)
    model = arguments.model.name if arguments.model else "synthetic"
    origin = {"model": model, **rows.provenance(arguments.device)}
    out = arguments.out or rows.default_file(origin)
    found = []
    for row in _measured(arguments, console):
        found.append({**row, **origin})
        rows.append(out, found[-1:])
    tables.show(found, console)
    console.print(f"rows: {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few shapes, fp32 and int8: a few minutes")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--model", type=Path, help="a local DistilBERT or BERT checkpoint")
    parser.add_argument("--threads", type=int, default=machine.info()["threads"])
    parser.add_argument("--contestants", help='comma-separated, such as "distilfast fp32,onnxruntime int8"')
    parser.add_argument("--only", choices=list(measure.ALL), nargs="+", help="these measurements")
    parser.add_argument("--cases", help='comma-separated, such as "1x16,clinc150 x32"; latency only')
    parser.add_argument("--case-seconds", type=float, help="of each case of a latency; more of them give more rounds")
    parser.add_argument("--cap", type=float, help="seconds of each contestant's cold starts, and of its many shapes")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    arguments = parser.parse_args()
    arguments.cases = frozenset(name.strip() for name in (arguments.cases or "").split(",") if name.strip())
    if wrong := workloads.no_case(arguments.cases, arguments.device, arguments.quick):
        raise SystemExit(f"error: {wrong}")
    return arguments


def _measured(arguments: argparse.Namespace, console: Console) -> Iterator[rows.Row]:
    """Every row, as soon as it is there."""
    wanted = _contestants(arguments)
    only = arguments.only or (QUICK_MEASUREMENTS if arguments.quick else measure.ALL)
    with tempfile.TemporaryDirectory() as scratch, _progress(console) as progress:
        run = Run(
            directory=_checkpoint(arguments.model, Path(scratch)),
            scratch=Path(scratch),
            threads=arguments.threads,
            device=arguments.device,
            quick=arguments.quick,
            progress=progress,
            plan=_plan(arguments),
            cases=arguments.cases,
        )
        try:
            yield from _prepared(run, wanted)
            yield from _right(run)
            for name in only:
                yield from measure.ALL[name](run)
        finally:
            for worker in run.workers:
                worker.close()


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = session.QUICK if arguments.quick else session.GPU if arguments.device == "cuda" else session.FULL
    cap, case = arguments.cap, arguments.case_seconds
    plan = plan if cap is None else replace(plan, cap=cap)
    return plan if case is None else replace(plan, case=case)


def _progress(console: Console) -> Progress:
    """Bars that tell how long the rest will take; a step may take a minute, so the speed is that of the last ten."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, speed_estimate_period=600)


def _checkpoint(model: Path | None, scratch: Path) -> Path:
    if model is not None:
        return model
    from benchmarks.workloads import DATA

    vocabulary = DATA / "vocab-cased"
    return write_checkpoint(
        scratch / "synthetic", task="feature-extraction", vocabulary=vocabulary if vocabulary.is_dir() else None
    )


def _contestants(arguments: argparse.Namespace) -> list[Contestant]:
    every = contestants(arguments.device)
    if arguments.contestants is None:
        return [c for c in every if not arguments.quick or _is_quick(c)]
    known = {str(contestant): contestant for contestant in every}
    chosen = [name.strip() for name in arguments.contestants.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise SystemExit(f"error: {', '.join(unknown)} unknown; there are {', '.join(known)}.")
    return [known[name] for name in chosen]


def _is_quick(contestant: Contestant) -> bool:
    return contestant.precision in QUICK_PRECISIONS and contestant.library not in SLOW_TO_PREPARE


def _prepared(run: Run, wanted: list[Contestant]) -> Iterator[rows.Row]:
    """Fills ``run.workers`` with those that load, one after the other, since they share what they prepare.

    Yields a row for each that does not.
    """
    task = run.progress.add_task("prepare", total=len(wanted))
    for contestant in wanted:
        run.progress.update(task, description=f"prepare {contestant}")
        reason = contestant.module.unavailable(contestant)
        if reason is None:
            worker = Worker(contestant, run.directory, run.threads, run.scratch)
            run.workers.append(worker)
            try:
                worker.load()
            except Failure as failure:
                _dismiss(run, worker)
                reason = str(failure)
        if reason is not None:
            yield measure.absent(contestant, reason)
        run.progress.advance(task)
    run.progress.remove_task(task)


def _dismiss(run: Run, worker: Worker) -> None:
    run.workers.remove(worker)
    worker.close()


def _right(run: Run) -> Iterator[rows.Row]:
    """Parity, always; a contestant with wrong results is not timed."""
    right = set()
    for row in measure.parity(run):
        if row.get("verdict") == "right":
            right.add((row["contestant"], row["precision"]))
        yield row
    for worker in list(run.workers):
        if (worker.contestant.name, worker.contestant.precision) not in right:
            _dismiss(run, worker)


if __name__ == "__main__":
    main()
