"""``distilfast map``: answers for the rows of Parquet files, by Ray, on one machine or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from distilfast.cli.answer import named_options, pipe_task
from distilfast.cli.options import Backend, Model, Precision, Revision, complete_pipeline, engine_options
from distilfast.cli.terminal import errors
from distilfast.errors import BackendError


def map_rows(
    task: Annotated[
        str,
        typer.Argument(help="A task of distilfast.pipeline whose rows are texts.", autocompletion=complete_pipeline),
    ],
    model: Model,
    input: Annotated[str, typer.Argument(help="A Parquet file, or a folder of them.")],
    output: Annotated[str, typer.Argument(help="A folder for the answers, one file for each row group.")],
    column: Annotated[
        list[str] | None, typer.Option(help="NAME of the column with the text, or FIELD=NAME (question=q).")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A column that the output has too; the default is all of them.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE: any argument of the pipeline, the value as JSON or text."),
    ] = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker's engine, CPUs of Ray.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of Ray that each worker takes.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="At most; the default is what the cluster has room for.")
    ] = None,
    revision: Revision = None,
) -> None:
    """Answer each row of INPUT into OUTPUT, exactly once; started again, it does what is missing.

    The output has the rows of the input, in files called after their row groups, with the column `answer`, or `vector`
    for feature-extraction, and `error` for a row without one. A cluster is that of RAY_ADDRESS.
    """
    with errors(as_json=False):
        try:
            from distilfast.integrations.parquet_job import Work
            from distilfast.integrations.ray_data import MapJob
        except ImportError as error:
            if error.name is None or error.name.startswith("distilfast"):
                raise
            raise BackendError(f"distilfast map needs {error.name}: pip install 'distilfast[ray]'.") from None
        engine = engine_options(precision, backend, threads, revision)
        work = Work.of(
            pipe_task(task),
            model,
            column or [],
            keep=None if keep is None else tuple(keep),
            engine=engine,
            options=named_options(option or []),
        )
        job = MapJob(work, input, output)
        rows = sum(part.rows for part in job.parts)
        there = rows - sum(part.rows for part in job.missing)
        if there:
            typer.echo(f"{there:,} of {rows:,} rows are there already.", err=True)
        done = sum(_with_bar(job.run(threads=threads, gpus=gpus, workers=workers), there, rows))
        typer.echo(f"{done:,} rows answered, {rows:,} in {output}.", err=True)


def _with_bar(counts: Iterator[int], there: int, rows: int) -> Iterator[int]:
    """``counts``; on a terminal with how many rows are done."""
    if not sys.stderr.isatty():
        yield from counts
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns: tuple[Any, ...] = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("rows", total=rows, completed=there)
        for count in counts:
            progress.advance(bar, count)
            yield count
