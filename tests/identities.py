"""The distinct kernels of this machine: an ISA and a precision for each function that a table runs.

Tables share functions: avx512_bf16's linear in fp32 is avx512's, and bf16x3 is fp32 wherever there is no AMX. A test of
an operation runs each function once; test_isa.py holds the table of what is shared with what.
"""

from __future__ import annotations

import pytest

from distilfast import _cpu
from distilfast.backends import cpu

SIMULATED = "amx_simulated"
"""Not in the installed module: its linears are its own, and all else is avx512_bf16's, as amx's is."""
_HERE = {} if cpu.unavailable() else cpu.isas()
_SHARED = ("avx512_vnni", "avx2_vnni") if _HERE.get("avx512_bf16") else ("avx2_vnni",)
"""The ISAs that have nothing of their own here but int8 products, those of avx2_vnni have a test of their own."""
THERE = {name: there for name, there in _HERE.items() if name not in _SHARED and (there or not name.startswith("neon"))}
"""The ISAs that whole models run on, and whether this processor has them; the best first."""
NATIVE = next((name for name, there in THERE.items() if there), "none")
"""What this processor runs when nobody forces another."""
Kernel = tuple[str, str]
"""ISA and precision."""


def owners(operation: str) -> dict[tuple[int, ...], Kernel]:
    """Who has each function first, from ``ref`` up and from fp32 down; also where this processor lacks the ISA."""
    found: dict[tuple[int, ...], Kernel] = {}
    for isa, table in reversed(_cpu.kernel_identities().items()):
        for precision in cpu.PRECISIONS:
            if identity := table.get((operation, precision)):
                found.setdefault(identity, (isa, precision))
    return found


def distinct(operation: str, *precisions: str) -> list[Kernel]:
    """An ISA and a precision for each function of this machine, and for simulated AMX's own."""
    every = [kernel for kernel in owners(operation).values() if not precisions or kernel[1] in precisions]
    here = [kernel for kernel in every if cpu.isas()[kernel[0]]]
    return here + [(SIMULATED, precision) for isa, precision in every if isa == "amx"]


def each_kernel(operation: str, *precisions: str) -> pytest.MarkDecorator:
    """Parametrise ``isa`` and ``precision`` over the distinct kernels, or over those of some precisions."""
    return pytest.mark.parametrize(("isa", "precision"), distinct(operation, *precisions), indirect=["isa"])


def each_isa(operation: str, *precisions: str) -> pytest.MarkDecorator:
    """Parametrise ``isa`` over those that have kernels of their own."""
    isas = dict.fromkeys(isa for isa, _ in distinct(operation, *precisions))
    return pytest.mark.parametrize("isa", isas, indirect=True)
