"""Which backend? Chosen once, at load, and said: never a silent fallback."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from distilfast.config import environment
from distilfast.errors import BackendError

# Backend -> its class in the module of the same name; the order is that of `auto`.
_CLASSES = {"cpu": "CpuBackend", "triton": "TritonBackend", "cuda": "CudaBackend", "reference": "ReferenceBackend"}


def names() -> tuple[str, ...]:
    """Every backend there is."""
    return tuple(_CLASSES)


def module(name: str) -> Any:
    """The module of a backend; raises BackendError for an unknown name."""
    if name not in _CLASSES:
        raise BackendError(f"backend {name!r} is not known; there are auto, {', '.join(_CLASSES)}.")
    return import_module(f"distilfast.backends.{name}")


def choose(name: str) -> tuple[str, str]:
    """The backend for a wish ("auto" or a name), and why; raises BackendError where the wish cannot be met."""
    why = "asked for"
    if name == "auto" and (forced := environment("BACKEND")):
        name, why = forced, "DISTILFAST_BACKEND asks for it"
    if name == "auto":
        name, why = "cpu", "the fastest backend there is so far"
    if reason := module(name).unavailable():
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return name, why


def create(name: str, threads: int | None) -> Any:
    """A backend, not loaded yet."""
    return getattr(module(name), _CLASSES[name])(threads)
