"""The only place where kernels are launched, so that launches can be recorded and compiled without running them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """One launch: ``arguments`` by position; ``options`` are the kernel's constants, num_warps and num_stages.

    Among the constants is ``is_dependent``: whether it is a dependent launch (see ``dependent``).
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def compile_options(options: dict[str, Any]) -> dict[str, Any]:
    """What the compiler is told beside the options of a launch."""
    dependent = {"launch_pdl": True} if options["is_dependent"] else {}  # AMD's compiler has no such option
    return {"enable_fp_fusion": True} | dependent


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run ``kernel`` on ``grid`` on the current stream; inside ``recording``, only record it."""
    found = _recorded.get()
    if found is None:
        kernel[grid](*arguments, **options, **compile_options(options))
    else:
        found.append(Launch(kernel, grid, arguments, options))


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of running them: with tensors on torch's ``meta`` device no GPU is needed."""
    found: list[Launch] = []
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)
