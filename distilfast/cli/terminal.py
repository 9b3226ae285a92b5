"""What all commands share: options given once, results as JSON, errors in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

from distilfast.errors import DistilfastError


class Command(TyperCommand):
    """Refuses an option that is given twice, of which the parser would take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises typer.BadParameter, which names the option."""
        if not ctx.resilient_parsing:  # a shell completes a line that is not finished
            given: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
            for param in given:
                once = param.param_type_name == "option" and not param.multiple and not param.is_flag
                if once and given.count(param) > 1:
                    raise typer.BadParameter("It is given more than once.", ctx=ctx, param=param)
        return super().parse_args(ctx, args)


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
