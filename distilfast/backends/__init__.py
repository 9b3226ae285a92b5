"""The backends, and the choice among them: made once, at load, and reported. There is no silent fallback."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from distilfast.arguments import listed
from distilfast.backends import measured
from distilfast.backends.buckets import BucketBackend
from distilfast.config import environment
from distilfast.errors import BackendError
from distilfast.types import Precision

# Backend -> its class in the module of the same name; the order is that of `auto`.
_CLASSES = {"cpu": "CpuBackend", "triton": "TritonBackend", "cuda": "CudaBackend", "reference": "ReferenceBackend"}


def names() -> tuple[str, ...]:
    """The names of all backends."""
    return tuple(_CLASSES)


def module(name: str) -> Any:
    """The module of a backend; raises BackendError for an unknown name."""
    if name not in _CLASSES:
        raise BackendError(f"backend {name!r} is not known; {listed(name, ('auto', *_CLASSES))}.")
    return import_module(f"distilfast.backends.{name}")


@dataclass(frozen=True)
class Choice:
    """The backends to load, usually one, and why; ``winners``: which of several runs in which token bucket."""

    names: tuple[str, ...]
    why: str
    winners: dict[int, str] = field(default_factory=dict)


def choose(name: str, precision: Precision) -> Choice:
    """The backend for a name or "auto"; raises BackendError where it is not available."""
    why, by = "requested", ""
    if name == "auto" and (forced := environment("BACKEND")):
        name, why, by = forced, "DISTILFAST_BACKEND asks for it", "DISTILFAST_BACKEND: "
    try:
        return _available(name, precision, why)
    except BackendError as error:
        raise BackendError(f"{by}{error}") from None


def _available(name: str, precision: Precision, why: str) -> Choice:
    choice = _choose_measured(precision) if name == "auto" else Choice((name,), why)
    for chosen in choice.names:
        if reason := module(chosen).unavailable():
            raise BackendError(f"backend {chosen!r} is not available: {reason}")
    return choice


def _choose_measured(precision: Precision) -> Choice:
    """A GPU backend where it was measured on such a GPU, else the CPU."""
    table = measured.read()
    if not table:
        return Choice(("cpu",), "no measured rows for any GPU")
    architecture = measured.architecture()
    if architecture is None:
        return Choice(("cpu",), "there is no GPU that can be used")
    where = f"{architecture} {precision}"
    winners = measured.winners(table, architecture, precision)
    if not winners:
        return Choice(("cpu",), f"no measured rows for {where}")
    usable = [
        name
        for name in measured.BACKENDS
        if precision in module(name).PRECISIONS and module(name).unavailable() is None
    ]
    if not usable:
        return Choice(("cpu",), f"no GPU backend that has {precision} is available")
    if len(usable) == 1:
        return Choice((usable[0],), f"measured rows for {where}, and no other GPU backend is available")
    names = tuple(name for name in usable if name in winners.values())
    return Choice(names, f"the faster one by measured rows for {where}", winners)


def create(choice: Choice, threads: int | None) -> Any:
    """The chosen backend, without a model."""
    made = {name: getattr(module(name), _CLASSES[name])(threads) for name in choice.names}
    return made[choice.names[0]] if len(made) == 1 else BucketBackend(made, choice.winners)
