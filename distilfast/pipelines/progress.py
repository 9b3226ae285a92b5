"""A progress bar on a terminal, for lists that take long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

Answer = TypeVar("Answer")

AFTER = 2.0
"""Seconds without a bar: most calls are over by then."""


def shown(answers: Iterable[Answer], inputs: Any) -> Iterator[Answer]:
    """``answers`` one after the other; where standard error is a terminal, with how many of ``inputs`` are done."""
    if not sys.stderr.isatty():
        yield from answers
        return
    began = time.monotonic()
    done = 0
    remaining = iter(answers)
    for answer in remaining:
        done += 1
        yield answer
        if time.monotonic() - began > AFTER:
            break
    else:
        return
    yield from _with_bar(remaining, done, len(inputs) if isinstance(inputs, Sized) else None)


def _with_bar(answers: Iterator[Answer], done: int, total: int | None) -> Iterator[Answer]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("inputs", total=total, completed=done)
        for answer in answers:
            progress.advance(task)
            yield answer
