"""Backends with planted errors: a float32 one with replaceable steps, and the C++ one with changed weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from planting import Float32Backend

from distilfast import backends
from distilfast.backends import cpu
from distilfast.heads import Head
from distilfast.weights import Weights

Register = Callable[..., str]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """``register(backend class)`` or ``register(steps=…, arithmetic=…, patched=…)``: its name for ``backend=``."""

    def make(backend: type | None = None, **attributes: Any) -> str:
        if "patched" in attributes:
            attributes["patched"] = staticmethod(attributes["patched"])
        module = ModuleType("distilfast.backends.planted")
        module.PlantedBackend = backend or type("Planted", (Float32Backend,), attributes)  # type: ignore[attr-defined]
        module.unavailable = lambda: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(backends._CLASSES, "planted", "PlantedBackend")
        return "planted"

    return make


@pytest.fixture
def cpp_with(register: Register) -> Callable[[Callable[[Weights], Weights]], str]:
    """``cpp_with(change)``: the C++ backend, loaded with weights altered by ``change``."""
    if reason := cpu.unavailable():
        pytest.skip(reason)

    def make(change: Callable[[Weights], Weights]) -> str:
        class Changed(cpu.CpuBackend):
            def load(self, weights: Weights, head: Head, precision: str) -> None:
                super().load(change(weights), head, precision)

        return register(Changed)

    return make


@pytest.fixture(params=["ref", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set, forced; those that this processor lacks are skipped."""
    if reason := cpu.unavailable():
        pytest.skip(reason)
    if not cpu.isas()[request.param]:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("DISTILFAST_ISA", request.param)
    return str(request.param)
