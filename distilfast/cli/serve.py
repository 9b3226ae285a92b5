"""``distilfast serve``: models over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distilfast.cli.options import Backend, Precision, Threads, among
from distilfast.cli.terminal import errors, print_json
from distilfast.errors import ConfigError


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints, directories or hub ids, each as PATH or NAME=PATH.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="A model's task, NAME=TASK; the default is its own.")] = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
    threads: Threads = None,
    host: Annotated[str | None, typer.Option(help="The address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="For requests that name none; 0 for none.")] = None,
    most_waiting: Annotated[float | None, typer.Option(help="Seconds of work without a deadline that wait.")] = None,
    cache_bytes: Annotated[int | None, typer.Option(help="Memory for answers that were given before.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A file of API keys, NAME KEY a line.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="For TLS, a PEM file.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="For TLS, a PEM file.")] = None,
    most_body_bytes: Annotated[int | None, typer.Option(help="Of one request.")] = None,
    most_texts: Annotated[int | None, typer.Option(help="Of one request.")] = None,
    most_connections: Annotated[int | None, typer.Option(help="At once; beyond it clients get 503.")] = None,
    header_timeout: Annotated[float | None, typer.Option(help="Seconds for a client to send its request.")] = None,
    drain_timeout: Annotated[float | None, typer.Option(help="Seconds for what waits, when the server ends.")] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info, warning or error.", autocompletion=among("debug", "info", "warning", "error")),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; they share the weights.")] = None,
    allow_pickle: Annotated[
        bool | None, typer.Option("--allow-pickle", help="Read checkpoints that have no safetensors file.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with any of these settings.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print every setting and its source.")] = False,
) -> None:
    """Serve models over HTTP, with the routes of text-embeddings-inference and OpenAI.

    A setting that no option gives is that of the environment, DISTILFAST_SERVE_PORT for --port, else of --config.
    """
    with errors(as_json=False):
        if sys.version_info < (3, 11):
            raise ConfigError("The server needs Python 3.11 or newer.")
        from distilfast.serving.http import settings as known

        flags: dict[str, Any] = {
            "host": host,
            "port": port,
            "deadline_ms": deadline_ms,
            "most_waiting": most_waiting,
            "cache_bytes": cache_bytes,
            "keys": keys,
            "certificate": certificate,
            "private_key": private_key,
            "most_body_bytes": most_body_bytes,
            "most_texts": most_texts,
            "most_connections": most_connections,
            "header_timeout": header_timeout,
            "drain_timeout": drain_timeout,
            "log_level": log_level,
            "workers": workers,
            "allow_pickle": allow_pickle,
        }
        given = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
        given = {name: value for name, value in given.items() if value is not None}
        if models:
            engine = {"precision": precision, "backend": backend, "threads": threads}
            served = [known.parsed_model(text, **engine) for text in models]
            given["models"] = known.with_tasks(served, task or [])
        elif task:
            raise ConfigError("--task names the task of a model of the command line, and there is none.")
        settings = known.load(given, config)
        if show_config:
            print_json(settings.shown())
            return
        try:
            from distilfast.serving.http.server import serve as run
        except ImportError as error:
            raise ConfigError(f"The server needs {error.name}: pip install 'distilfast[serve]'.") from None
        run(settings)
