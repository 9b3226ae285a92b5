"""Which instruction sets whole models run on: each that has some function of its own in a precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from identities import NATIVE, SIMULATED, THERE

from distilfast.backends import cpu

SLOW = ("ref", SIMULATED)
"""Plain C++, much slower than vector code: fewer texts there show the same property."""


def isas(precision: str = "fp32") -> list[Any]:
    """An ISA for each set of functions that a model runs, and AMX, real or simulated; those not here are skipped."""
    return [pytest.param(name, marks=_skipped(name)) for name in _names(precision)]


def isas_and_precisions(*precisions: str) -> list[Any]:
    """Pairs of them; the native ISA runs every precision, even if it is another's function."""
    return [
        pytest.param(name, precision, marks=_skipped(name))
        for precision in precisions
        for name in _names(precision)
        if name in (NATIVE, SIMULATED, "amx") or precision != "bf16x3"  # elsewhere fp32, see tests/kernels/test_isa.py
    ]


def isas_with(native: Sequence[Any], elsewhere: Sequence[Any]) -> list[Any]:
    """Pairs of an ISA and a value: all of ``native`` for what this processor runs, ``elsewhere`` on each other ISA.

    For full-size models, whose breadth one ISA shows: on the others their kernels are what is new.
    """
    return [
        pytest.param(name, value, marks=_skipped(name))
        for value in native
        for name in _names("fp32")
        if name == NATIVE or value in elsewhere
    ]


def _names(precision: str) -> list[str]:
    first: dict[Any, str] = {}
    for name, there in THERE.items():
        first.setdefault(_functions(name, precision) if there else name, name)
    # Where there is AMX, tests/amx shows that it gives the simulated unit's bits.
    return [*(first.values() or ["none"]), *([] if THERE.get("amx") else [SIMULATED])]


def _functions(isa: str, precision: str) -> tuple[Any, ...]:
    """All that a model in this precision runs; in int8 its head is bf16."""
    from distilfast import _cpu

    own = _cpu.kernel_identities()[isa]
    linears = ("int8", "bf16") if precision == "int8" else (precision,)
    return (
        *(own["linear", each] for each in linears),
        own["attention", precision],
        own["embed", "fp32"],
        own["add_layer_norm", "fp32"],
    )


def _skipped(name: str) -> pytest.MarkDecorator:
    there = THERE.get(name, name == SIMULATED)
    return pytest.mark.skipif(not there, reason=cpu.unavailable() or f"this processor has no {name}")
