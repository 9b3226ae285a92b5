"""The contestants, one module each, named as their library.

A module has ``PRECISIONS``, ``unavailable(precision) -> str | None`` (why it cannot run here, in one sentence) and
``load(directory, precision, threads, scratch) -> Forward``, which prepares the checkpoint with no manual step; what
took long to prepare stays in ``scratch`` and is used again. A precision is named as the library computes it, and
``load`` raises RuntimeError where it would run in another one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids int64 [B, L], mask int64 [B, L], 1 where a token counts) -> last hidden state [B, L, D]."""

MODULES = ("distilfast", "transformers", "torch_compile", "onnxruntime", "openvino", "ctranslate2")


@dataclass(frozen=True)
class Contestant:
    """One library in one precision."""

    name: str
    precision: str

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"

    @property
    def module(self) -> ModuleType:
        """Where it is loaded."""
        return import_module(f"benchmarks.engines.{self.name}")


def contestants() -> list[Contestant]:
    """Everybody, ourselves first."""
    return [
        Contestant(name, precision)
        for name in MODULES
        for precision in import_module(f"benchmarks.engines.{name}").PRECISIONS
    ]


def missing(*packages: str) -> str | None:
    """The sentence for packages that are not installed, or None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed." if absent else None
