"""How good the answers are, under each precision: one result row for each model, data set and precision.

    python -m benchmarks.glue --models DIR --data DIR [--precision fp32]… [--limit N] [--out FILE]
    python -m benchmarks.glue --job banking77 MODEL DATA [--job …] [--precision fp32]… [--out FILE]

--models is a folder of fine-tunes, each in a folder that is called after its task or ends so ("mrpc",
"distilbert-base-cased-mrpc"); --data is GLUE's. --job is any data set that `distilfast evaluate` knows.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.rows import append, provenance
from distilfast.errors import DistilfastError
from distilfast.evaluation import Result, evaluate
from distilfast.evaluation.glue import TASKS

Job = tuple[str, str, str]
"""Data set, model, where its data lies."""


def main() -> None:
    """Evaluate every job under every precision, print the table, append the rows to --out."""
    arguments = _arguments()
    os.environ.setdefault("DISTILFAST_CACHE", "off")  # many models, each used once: not for the user's cache
    console = Console(markup=False, highlight=False)
    jobs = [*_fine_tunes(arguments), *map(tuple, arguments.job or [])]
    if not jobs:
        raise SystemExit("error: There is nothing to evaluate; name a --job, or --models with --data.")
    results = list(_results(jobs, arguments, console))
    console.print(_table(results))
    if arguments.out:
        append(Path(arguments.out), [_row(result, arguments) for result in results])
    raise SystemExit(0 if len(results) == len(jobs) * len(arguments.precision or ["fp32"]) else 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, help="a folder of fine-tunes")
    parser.add_argument("--data", type=Path, help="GLUE's folder")
    parser.add_argument("--job", nargs=3, action="append", metavar=("DATASET", "MODEL", "DATA"))
    parser.add_argument("--precision", action="append", help="may be repeated; fp32 alone where not given")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, help="at most so many examples, evenly spaced over the data")
    parser.add_argument("--out", help="append result rows, JSON, to this file")
    return parser.parse_args()


def _fine_tunes(arguments: argparse.Namespace) -> Iterator[Job]:
    """A job for each folder of --models that holds a checkpoint and names a task of GLUE."""
    if arguments.models is None:
        return
    if arguments.data is None or not arguments.models.is_dir():
        raise SystemExit("error: --models must be a folder, and --data must say where GLUE's data lies.")
    for folder in sorted(arguments.models.iterdir()):
        name = folder.name.lower().replace("sst-2", "sst2").replace("sts-b", "stsb")
        task = next((task for task in TASKS if name == task or name.endswith(f"-{task}")), None)
        if task is not None and (folder / "config.json").exists():
            yield task, str(folder), str(arguments.data)


def _results(jobs: list[Any], arguments: argparse.Namespace, console: Console) -> Iterator[Result]:
    """The results; a job that cannot be evaluated is reported in one line, and the others go on."""
    with Progress(console=console, transient=True) as progress:
        for dataset, model, data in jobs:
            for precision in arguments.precision or ["fp32"]:
                bar = progress.add_task(f"{dataset} {precision}", total=None)
                try:
                    yield evaluate(
                        model,
                        dataset,
                        data,
                        precision=precision,
                        backend=arguments.backend,
                        threads=arguments.threads,
                        limit=arguments.limit,
                        progress=lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),
                    )
                except DistilfastError as error:
                    console.print(f"{dataset} {precision} {model}: absent: {error}")
                progress.remove_task(bar)


def _row(result: Result, arguments: argparse.Namespace) -> dict[str, Any]:
    return {"what": "task", **result.to_dict(), "limit": arguments.limit, **provenance()}


def _table(results: list[Result]) -> Table:
    table = Table(title="task metrics, percent", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("data set", "model", "precision", "metrics", "examples"):
        table.add_column(column, overflow="fold")
    for result in results:
        scores = ", ".join(f"{name} {value:.2f}" for name, value in result.metrics.items())
        counts = ", ".join(f"{count} {name}" for name, count in result.counts.items())
        table.add_row(result.dataset, Path(result.model).name, f"{result.precision} ({result.detail})", scores, counts)
    return table


if __name__ == "__main__":
    main()
