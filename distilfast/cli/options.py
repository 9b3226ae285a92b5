"""The options that several commands have."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from distilfast import types

Model = Annotated[str, typer.Argument(help="A checkpoint: a directory or a hub id.")]
Precision = Annotated[str, typer.Option(help=f"Arithmetic of the engine: {', '.join(get_args(types.Precision))}.")]
Backend = Annotated[
    str, typer.Option(help=f'{", ".join(get_args(types.BackendName))}; "auto" chooses once and `info` says why.')
]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; the default is what the machine allows.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Task = Annotated[str | None, typer.Option(help="The head to load; the default is the checkpoint's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def engine_options(
    precision: str, backend: str, threads: int | None, revision: str | None = None, **others: str | None
) -> dict[str, Any]:
    """Keyword arguments of ``Engine.from_pretrained``, which checks their values."""
    return {"precision": precision, "backend": backend, "threads": threads, "revision": revision, **others}
