"""`distilfast evaluate`. Imported whenever the command line is, so nothing heavy is imported above its function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from distilfast.cli.options import Backend, Json, Model, Precision, Revision, Threads, completing, engine_options
from distilfast.cli.terminal import errors, print_json

if TYPE_CHECKING:
    from distilfast.evaluation.result import Result
    from distilfast.evaluation.sequences import Progress


def _datasets() -> Iterable[str]:
    from distilfast.evaluation import DATASETS

    return DATASETS


def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, squad, ner, banking77 or clinc150.",
            autocompletion=completing(_datasets),
        ),
    ],
    model: Model,
    data: Annotated[
        str | None,
        typer.Argument(help="Its data: a file or a folder; without it, GLUE is fetched through `datasets`."),
    ] = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Threads = None,
    revision: Revision = None,
    limit: Annotated[int | None, typer.Option(help="At most so many examples, evenly spaced over the data.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on labelled data, with the task's official metrics in percent."""
    with errors(as_json):
        from distilfast.cli import rich_tables
        from distilfast.evaluation import tasks

        engine = engine_options(precision, backend, threads, revision)
        with _bar(dataset) as progress:
            result = tasks.evaluate(model, dataset, data, limit=limit, progress=progress, **engine)
        if as_json:
            print_json(result.to_dict())
        else:
            rich_tables.console().print(rich_tables.facts(_shown(result)))


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A bar on stderr for as long as the work takes, and what moves it."""
    from rich.progress import Progress as Bar

    from distilfast.cli import rich_tables

    out = rich_tables.console(stderr=True)
    with Bar(console=out, transient=True, disable=not out.is_terminal) as bar:
        line = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def _shown(result: Result) -> dict[str, object]:
    """The result as it is read: two decimals, and notes only where there are some."""
    facts = result.to_dict()
    facts["metrics"] = {name: f"{value:.2f} %" for name, value in result.metrics.items()}
    return {name: " ".join(value) if name == "notes" else value for name, value in facts.items() if value}
