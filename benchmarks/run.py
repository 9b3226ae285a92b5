"""Latency beside other engines: parity first, then time, the contestants in turn, each in a process of its own.

    python -m benchmarks.run [--model DIR] [--grid] [--threads N] [--rounds N] [--seconds S] [--out FILE]

Without --model a full-size checkpoint with seeded weights is written to a temporary directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import timing
from benchmarks.engines import CONTESTANTS
from benchmarks.worker import Worker
from benchmarks.workloads import GRID, QUICK, Case
from distilfast import Engine, machine
from distilfast.config import ModelConfig
from distilfast.parity import relative_error
from distilfast.synthetic import write_checkpoint

WRONG = 1e-5
"""A contestant whose relative error at 1x16 is above this does not compute the model in fp32."""


def main() -> None:
    """Run the comparison, print it, and append its rows to --out."""
    arguments = _arguments()
    console = Console(markup=False, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        directory = (
            Path(arguments.model) if arguments.model else write_checkpoint(Path(scratch), task="feature-extraction")
        )
        workers = [Worker(name, directory, arguments.threads) for name in CONTESTANTS]
        try:
            rows = _compare(workers, directory, arguments, console)
        finally:
            for worker in workers:
                worker.close()
    if arguments.out:
        with Path(arguments.out).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a local DistilBERT or BERT checkpoint")
    parser.add_argument("--grid", action="store_true", help="eleven shapes instead of three")
    parser.add_argument("--threads", type=int, default=machine.info()["threads"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contestant in each round")
    parser.add_argument("--out", help="append result rows, JSON, to this file")
    return parser.parse_args()


def _compare(
    workers: list[Worker], directory: Path, arguments: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    vocabulary = ModelConfig.from_file(directory / "config.json").vocab_size
    errors = _errors(workers, directory, vocabulary)
    for worker in workers:
        if worker.failure:
            console.print(f"{worker.name}: absent: {worker.failure}")
        elif errors[worker.name] > WRONG:
            console.print(f"{worker.name}: wrong: relative error {errors[worker.name]:.1e}; not ranked")
    ranked = [worker for worker in workers if worker.failure is None and errors[worker.name] <= WRONG]
    rows = []
    cases = GRID if arguments.grid else QUICK
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(cases) * arguments.rounds)
        for case in cases:
            rounds: dict[str, list[list[float]]] = {worker.name: [] for worker in ranked}
            for _ in range(arguments.rounds):
                progress.update(bar, advance=1, description=case.name)
                for worker in ranked:
                    rounds[worker.name].append(worker.samples(case, vocabulary, arguments.seconds))
            rows += [_row(worker, case, rounds, errors[worker.name], arguments.threads) for worker in ranked]
    console.print(_table(rows, arguments.threads))
    return rows


def _errors(workers: list[Worker], directory: Path, vocabulary: int) -> dict[str, float]:
    """Relative error of each contestant's last hidden state against float64, at 1x16."""
    truth = Engine.from_pretrained(directory, task="feature-extraction", backend="reference", precision="fp64")
    case = Case(1, 16)
    wanted = truth(case.ids(vocabulary)).last_hidden_state
    return {
        worker.name: relative_error(worker.answer(case, vocabulary), wanted)
        for worker in workers
        if worker.failure is None
    }


def _row(
    worker: Worker, case: Case, rounds: dict[str, list[list[float]]], error: float, threads: int
) -> dict[str, Any]:
    mine = rounds[worker.name]
    ratio = timing.ratio(mine, rounds["distilfast"])
    return {
        "what": "latency",
        "contestant": worker.name,
        "precision": worker.precision,
        "case": case.name,
        **timing.percentiles(list(np.concatenate(mine))),
        "samples": sum(map(len, mine)),
        "ratio_to_distilfast": dict(zip(("median", "low", "high"), ratio, strict=True)),
        "relative_error": error,
        "threads": threads,
        **_provenance(),
    }


def _provenance() -> dict[str, Any]:
    """Where a row comes from: machine, versions, commit, command."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()

    versions = {}
    for name in ("distilfast", "numpy", "torch", "transformers", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": {
            "processor": machine.processor(),
            "isa": machine.info().get("isa"),
            "cores": machine.info().get("threads"),
        },
        "versions": versions,
        "commit": git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else ""),
        "command": " ".join(["python -m benchmarks.run", *sys.argv[1:]]),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _table(rows: list[dict[str, Any]], threads: int) -> Table:
    title = f"last hidden state, ms, {threads} threads, {machine.processor()}"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("case", "contestant", "p50", "p90", "p99", "/ distilfast p50 [95 %]", "error"):
        table.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for i, row in enumerate(rows):
        ratio = row["ratio_to_distilfast"]
        ours = row["contestant"] == "distilfast"
        table.add_row(
            row["case"],
            f"{row['contestant']} {row['precision']}",
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p90_ms", "p99_ms")),
            "" if ours else f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            f"{row['relative_error']:.1e}",
            end_section=i + 1 < len(rows) and rows[i + 1]["case"] != row["case"],
        )
    return table


if __name__ == "__main__":
    main()
