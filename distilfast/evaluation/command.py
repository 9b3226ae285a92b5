"""`distilfast evaluate`. Imported whenever the command line is, so nothing heavy is imported above its function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilfast.terminal import errors, print_json

if TYPE_CHECKING:
    from distilfast.evaluation.result import Result
    from distilfast.evaluation.run import Progress


def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, squad, ner, banking77 or clinc150.",
        ),
    ],
    model: Annotated[str, typer.Argument(help="A checkpoint: a directory or a hub id.")],
    data: Annotated[
        str | None,
        typer.Argument(help="Its data: a file or a folder; without it, GLUE is fetched through `datasets`."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Arithmetic of the engine.")] = "fp32",
    backend: Annotated[str, typer.Option(help='Which backend; "auto" chooses once and `info` says why.')] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of the engine; the default is what the machine allows.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many examples, evenly spaced over the data.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure a model on labelled data, with the task's official metrics in percent."""
    with errors(as_json):
        from distilfast import tables
        from distilfast.evaluation import tasks

        engine: dict[str, Any] = {
            "precision": precision, "backend": backend, "threads": threads, "revision": revision
        }  # fmt: skip
        with _bar(dataset) as progress:
            result = tasks.evaluate(model, dataset, data, limit=limit, progress=progress, **engine)
        if as_json:
            print_json(result.to_dict())
        else:
            tables.console().print(tables.facts(_shown(result)))


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A bar on stderr for as long as the work takes, and what moves it."""
    from rich.progress import Progress as Bar

    from distilfast import tables

    out = tables.console(stderr=True)
    with Bar(console=out, transient=True, disable=not out.is_terminal) as bar:
        line = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def _shown(result: Result) -> dict[str, object]:
    """The result as it is read: two decimals, and notes only where there are some."""
    facts = result.to_dict()
    facts["metrics"] = {name: f"{value:.2f} %" for name, value in result.metrics.items()}
    return {name: " ".join(value) if name == "notes" else value for name, value in facts.items() if value}
