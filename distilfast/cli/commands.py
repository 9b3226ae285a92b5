"""The commands of `distilfast`. Exit status 0, 1 where a parity check fails, 2 for an error, printed in one line.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilfast.cli.evaluate import evaluate
from distilfast.cli.options import Backend, Json, Model, Precision, Revision, Task, Threads, engine_options
from distilfast.cli.terminal import errors, print_json
from distilfast.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    name="distilfast",
    help="DistilBERT and BERT encoders, served by hand-written kernels.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# Which options of `run` a task takes, by the name of the pipeline's argument.
_RUN_OPTIONS = {"fill-mask": ("top_k", "targets"), "text-classification": ("top_k", "function_to_apply")}


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A checkpoint; without it, the machine is described.")] = None,
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


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="fill-mask, text-classification or feature-extraction.")],
    model: Model,
    text: Annotated[list[str], typer.Argument(help="One or more texts.")],
    top_k: Annotated[int | None, typer.Option(help="How many answers to give.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="fill-mask: score only these words.")] = None,
    function_to_apply: Annotated[
        str | None, typer.Option(help="text-classification: sigmoid, softmax or none.")
    ] = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Answer for each TEXT."""
    with errors(as_json):
        import distilfast
        from distilfast.cli import rich_tables

        given = {"top_k": top_k, "targets": target or None, "function_to_apply": function_to_apply}
        options = _checked(task, {name: value for name, value in given.items() if value is not None})
        pipe = distilfast.pipeline(task, model, **engine_options(precision, backend, threads))
        if as_json:
            print_json({"task": task, "model": model, "results": [pipe(one, **options) for one in text]})
            return
        out = rich_tables.console()
        for one in text:
            out.print(_answer(task, pipe, one, options))


@app.command()
def parity(
    model: Model,
    against: Annotated[str, typer.Option(help="What is true, in float64: reference or transformers.")] = "reference",
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
        from distilfast.cli.check_parity import Options, run

        engine = engine_options(precision, backend, threads, revision, task=task)
        outcome = run(Options(model, engine, against, text, labels, baseline, limit, invariance, plot=plot, html=html))
        if as_json:
            print_json(outcome.payload)
        else:
            outcome.show(rich_tables.console())
    raise typer.Exit(0 if outcome.passed else 1)


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="A checkpoint to use instead of the trained ones.")] = None,
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


app.command()(evaluate)


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


def _answer(task: str, pipe: Any, text: str, options: dict[str, Any]) -> Table:
    """What a reader is shown; of feature-extraction one vector for the text instead of one for each token."""
    from distilfast.cli import rich_tables

    show = {"fill-mask": rich_tables.fill_mask, "text-classification": rich_tables.text_classification}
    if task in show:
        return show[task](text, pipe(text, **options))
    return rich_tables.embedding(text, pipe.embed([text])[0])


def _checked(task: str, options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in _RUN_OPTIONS.get(task, ()):
            raise InputError(f"--{name.removesuffix('s').replace('_', '-')} is not an option of {task}.")
    return options
