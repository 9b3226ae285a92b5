"""The options that several commands have, and what a shell completes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args

import typer

from distilfast import types

Complete = Callable[[str], list[str]]


def completing(names: Callable[[], Iterable[str]]) -> Complete:
    """What a shell offers for an argument: those of ``names()`` that begin as what was typed does."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def among(*names: str) -> Complete:
    """The same for names that are known without an import."""
    return completing(lambda: names)


def _pipelines() -> Iterable[str]:
    from distilfast.pipelines import ALIASES, PIPELINES

    return (*PIPELINES, *ALIASES)


def _fetched_models() -> Iterable[str]:
    """Hub ids; where none fits, the shell offers files and folders."""
    from distilfast.cli import hub

    return hub.cached_models()


complete_pipeline, complete_model = completing(_pipelines), completing(_fetched_models)
_PRECISIONS, _BACKENDS = get_args(types.Precision), get_args(types.BackendName)

Model = Annotated[str, typer.Argument(help="A checkpoint: a directory or a hub id.", autocompletion=complete_model)]
Precision = Annotated[
    str,
    typer.Option(help=f"Arithmetic of the engine: {', '.join(_PRECISIONS)}.", autocompletion=among(*_PRECISIONS)),
]
Backend = Annotated[
    str,
    typer.Option(
        help=f'{", ".join(_BACKENDS)}; "auto" chooses once and `info` says why.', autocompletion=among(*_BACKENDS)
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; the default is what the machine allows.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="The head to load; the default is the checkpoint's own.",
        autocompletion=among(*get_args(types.Task)),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else: one object, or one for each row.")]


def engine_options(
    precision: str, backend: str, threads: int | None, revision: str | None = None, **others: str | None
) -> dict[str, Any]:
    """Keyword arguments of ``Engine.from_pretrained``, which checks their values."""
    return {"precision": precision, "backend": backend, "threads": threads, "revision": revision, **others}
