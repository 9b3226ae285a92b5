"""The commands of `distilfast`. Exit status 0, 1 where a parity check fails, 2 for an error, printed in one line.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilfast.cli.answer import run
from distilfast.cli.doctor import doctor
from distilfast.cli.evaluate import evaluate
from distilfast.cli.map import map_rows
from distilfast.cli.options import (
    Backend,
    Json,
    Model,
    Precision,
    Revision,
    Task,
    Threads,
    among,
    complete_model,
    engine_options,
)
from distilfast.cli.serve import serve
from distilfast.cli.terminal import Command, errors, print_json
from distilfast.errors import InputError

app = typer.Typer(
    name="distilfast",
    help="DistilBERT and BERT encoders, served by hand-written kernels.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.command(cls=Command)
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint; without it, the machine is described.", autocompletion=complete_model),
    ] = None,
    task: Task = None,
    revision: Revision = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Describe this machine's backends, or one loaded checkpoint."""
    with errors(as_json):
        import distilfast
        from distilfast.cli import rich_tables

        if model is None:
            facts = distilfast.info()
        else:
            options = engine_options(precision, backend, threads, revision, task=task)
            facts = distilfast.Engine.from_pretrained(model, **options).info()
        if as_json:
            print_json(facts)
        else:
            rich_tables.console().print(rich_tables.facts(facts))


app.command(cls=Command)(doctor)


app.command(cls=Command)(run)


@app.command(cls=Command)
def parity(
    model: Model,
    against: Annotated[
        str,
        typer.Option(
            help="What is true, in float64: reference or transformers.",
            autocompletion=among("reference", "transformers"),
        ),
    ] = "reference",
    text: Annotated[
        Path | None,
        typer.Option(
            help="A file of texts, one a line, a tab in a pair, or SQuAD's JSON; the default is a few of our own."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="A file of labels, one a line, or the number of the column of --text with them.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="With --labels, what to compare with: reference, transformers or a precision.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many texts to trace; --labels are used in full.")] = 256,
    invariance: Annotated[bool, typer.Option(help="Only check that batches and threads change no bit.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the error by layer: a .png or .svg file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page.")] = None,
    task: Task = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Threads = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Judge every intermediate against float64; exit status 1 where a budget is not kept."""
    with errors(as_json):
        from distilfast.cli import rich_tables
        from distilfast.cli.check_parity import Options, check

        engine = engine_options(precision, backend, threads, revision, task=task)
        outcome = check(
            Options(model, engine, against, text, labels, baseline, limit, invariance, plot=plot, html=html)
        )
        if as_json:
            print_json(outcome.payload)
        else:
            outcome.show(rich_tables.console())
    raise typer.Exit(0 if outcome.passed else 1)


@app.command(cls=Command)
def demo(
    model: Annotated[
        str | None, typer.Option(help="A checkpoint to use instead of the trained ones.", autocompletion=complete_model)
    ] = None,
    as_json: Json = False,
) -> None:
    """Search, fill-mask, the proof layer by layer, and the latency."""
    with errors(as_json):
        from distilfast.cli import demo as screens
        from distilfast.cli import rich_tables

        shown = screens.run(model, rich_tables.console(quiet=as_json))
        if as_json:
            print_json(shown)
    raise typer.Exit(0 if shown["parity"]["passed"] else 1)


app.command(cls=Command)(evaluate)


app.command(cls=Command)(serve)


app.command("map", cls=Command)(map_rows)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Compare with other engines; its options are those of benchmarks/run.py, in a clone of the repository."""
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    with errors(as_json=False):
        if not (root / "benchmarks" / "run.py").exists():
            raise InputError(
                "The benchmarks are not installed with the package; run this in a clone of the repository."
            )
    raise typer.Exit(subprocess.run([sys.executable, "-m", "benchmarks.run", *context.args], cwd=root).returncode)
