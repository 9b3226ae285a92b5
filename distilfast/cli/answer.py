"""`distilfast run`: answers for texts on the command line, or for the rows of a file or of standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilfast.cli.options import (
    Backend,
    Json,
    Model,
    Precision,
    Revision,
    Threads,
    among,
    complete_pipeline,
    engine_options,
)
from distilfast.cli.terminal import errors, print_json
from distilfast.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from distilfast.cli.inputs import Position, Source
    from distilfast.cli.results import Results

_FLUSH = 0.5
"""Seconds between two times that what was written is handed to the system."""


def run(
    task: Annotated[
        str,
        typer.Argument(
            help="A task of distilfast.pipeline, as fill-mask or text-classification.", autocompletion=complete_pipeline
        ),
    ],
    model: Model,
    text: Annotated[
        list[str] | None, typer.Argument(help="One or more texts; '-' reads rows from standard input.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="How many answers to give.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="fill-mask: score only these words.")] = None,
    function_to_apply: Annotated[
        str | None,
        typer.Option(
            help="text-classification: sigmoid, softmax or none.", autocompletion=among("sigmoid", "softmax", "none")
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="question-answering: the text that holds the answers to each TEXT, a question.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="zero-shot-classification: the labels, with commas between them.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE: any argument of the pipeline, the value as JSON or text."),
    ] = None,
    source: Annotated[str | None, typer.Option("--input", "-i", help="A file of rows.")] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Of the input: text, csv, tsv, jsonl or parquet.",
            autocompletion=among("text", "csv", "tsv", "jsonl", "parquet"),
        ),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="NAME of the column with the text, or FIELD=NAME (question=q).")
    ] = None,
    output: Annotated[str | None, typer.Option(help="A file for the answers instead of standard output.")] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Of the output: jsonl, csv or text.", autocompletion=among("jsonl", "csv", "text")),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last row of --output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False,
    on_error: Annotated[
        str, typer.Option(help="What a row without an answer does: skip or stop.", autocompletion=among("skip", "stop"))
    ] = "stop",
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Threads = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Answer each TEXT, or each row of --input; one line a row, in order, however many there are."""
    with errors(as_json):
        import distilfast

        given = {"top_k": top_k, "targets": target or None, "function_to_apply": function_to_apply}
        given |= {"candidate_labels": labels}
        options = {name: value for name, value in given.items() if value is not None} | named_options(option or [])
        engine = engine_options(precision, backend, threads, revision)
        if source is None and text and text != ["-"]:
            inputs = _inputs(pipe_task(task), text, context)
            _refuse(format=format, column=column, output=output, to=to, resume=resume, overwrite=overwrite)
            pipe = distilfast.pipeline(task, model, **engine, **options)
            _print_answers(task, model, pipe, inputs, as_json)
            return
        if context is not None:
            raise InputError("--context is for a question on the command line; a row has its own.")
        if text and source is not None:
            raise InputError("TEXT and --input are given; one of them is needed.")
        if not text and source is None:
            raise InputError("There is no text; pass TEXT, '-' for standard input, or --input.")
        if on_error not in ("skip", "stop"):
            raise InputError(f"--on-error {on_error!r} is not known; there are skip and stop.")
        from distilfast.cli.inputs import Source
        from distilfast.cli.results import Results, format_of

        rows = Source.of(source or "-", format, pipe_task(task), column or [])
        made = format_of(output, to or ("jsonl" if as_json else None))
        pipe = distilfast.pipeline(task, model, **engine, **options)
        results = Results(output, made, resume=resume, overwrite=overwrite)
        _answer_rows(pipe, rows, results, stop=on_error == "stop")


def pipe_task(task: str) -> str:
    """The name of a task for which an alias may be given."""
    from distilfast.pipelines import ALIASES

    return ALIASES.get(task, task)


def named_options(options: list[str]) -> dict[str, Any]:
    """NAME=VALUE; a value that is no JSON is text."""
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise InputError(f"--option {option!r} is not NAME=VALUE.")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found


def _inputs(task: str, texts: list[str], context: str | None) -> Sequence[str | dict[str, str]]:
    """What the pipeline is given for ``texts``; raises InputError where its input is more than they are."""
    from distilfast.cli.inputs import FIELDS, is_optional

    fields = [name for name in FIELDS.get(task, ()) if not is_optional(name)]
    if context is not None:
        if "context" not in fields:
            raise InputError(f"--context is for question-answering; {task} takes no context.")
        return [{"question": text, "context": context} for text in texts]
    if len(fields) > 1:
        row = ", ".join(f'"{name}": ' + ('["…"]' if name in ("sentences", "choices") else '"…"') for name in fields)
        either = "--context TEXT, or " if "context" in fields else ""
        raise InputError(
            f"{task} takes {either}rows of JSON with {' and '.join(fields)}: "
            f"echo '{{{row}}}' | distilfast run {task} MODEL - --format jsonl"
        )
    return texts


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise InputError(f"--{name} is for rows of --input or standard input, and TEXT is given.")


def _print_answers(task: str, model: str, pipe: Any, inputs: Sequence[str | dict[str, str]], as_json: bool) -> None:
    from distilfast.cli import rich_tables

    if as_json:
        print_json({"task": task, "model": model, "results": [pipe(one) for one in inputs]})
        return
    out = rich_tables.console()
    for one in inputs:
        out.print(_table(pipe_task(task), pipe, one))


def _table(task: str, pipe: Any, given: str | dict[str, str]) -> Table:
    """What a reader is shown; of feature-extraction one vector for the text instead of one for each token."""
    from distilfast.cli import rich_tables

    if isinstance(given, dict):
        return rich_tables.any_answer(given["question"], pipe(given))
    if task == "feature-extraction":
        return rich_tables.embedding(given, pipe.embed([given])[0])
    return rich_tables.ANSWERS.get(task, rich_tables.any_answer)(given, pipe(given))


def _answer_rows(pipe: Any, source: Source, results: Results, *, stop: bool) -> None:
    from distilfast.cli.inputs import Position

    position, failed = Position(), 0
    first = results.done + 1
    rows = islice(source.rows(position), results.done, None)
    answers = pipe.stream_vectors(rows, first=first) if pipe.task == "feature-extraction" else None
    flushed = time.monotonic()
    try:
        for row, answer in enumerate(_with_bar(answers or pipe.stream(rows, first=first), position, results), first):
            if isinstance(answer, InputError):
                if stop:
                    raise InputError(f"Row {row} has no answer: {_uncapitalised(answer)}")
                failed += 1
            results.write(row, answer)
            if time.monotonic() - flushed > _FLUSH:
                results.flush()
                flushed = time.monotonic()
    finally:
        results.close()
    if failed:
        typer.echo(f"{failed} of {results.done - first + 1} rows have no answer; their lines say why.", err=True)


def _uncapitalised(error: InputError) -> str:
    text = str(error)
    return text[0].lower() + text[1:]


def _with_bar(answers: Iterator[Any], position: Position, results: Results) -> Iterator[Any]:
    """``answers``; on a terminal with how far the input is read and how many rows are done."""
    if not sys.stderr.isatty():
        yield from answers
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.fields[rows]:,} rows"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("rows", total=None, rows=results.done)
        for answer in answers:
            yield answer
            progress.update(bar, total=position.total, completed=position.done, rows=results.done)
