"""What all commands share: results as JSON, errors in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from distilfast.errors import DistilfastError


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Every error raised on purpose, and too little memory, becomes one line and exit status 2."""
    try:
        yield
    except DistilfastError as error:
        reason = str(error)
    except MemoryError:
        reason = "The memory does not suffice; `distilfast doctor` shows what there is, and int8 needs the least."
    else:
        return
    if as_json:
        print_json({"error": reason})
    else:
        typer.echo(f"error: {reason}", err=True)
    raise typer.Exit(2)


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    typer.echo(json_line(value))


def json_line(value: Any) -> str:
    """JSON in one line; NaN and infinities, which JSON does not have, become null.

    A lone surrogate, which a word of the command line that is not UTF-8 holds, is escaped: it cannot be encoded.
    """
    try:
        line = json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
        line = json.dumps(plain, ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """numpy's arrays and scalars as lists and numbers, paths as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
