"""The forced ISA runs and no other, and wide registers stay inside their own unit."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

from distilfast import _cpu
from distilfast.backends import cpu
from distilfast.errors import BackendError


def test_each_isa_computes_in_its_own_way(normal):
    """The lanes of a LayerNorm's sums differ by ISA, so their last bits do: a table that ran another ISA would show.

    The others add products of bf16 or int8 operands to avx2 or avx512, and share the rest with it.
    """
    x, residual, weight, bias = normal(9, 768), normal(9, 768), normal(768), normal(768)
    results = {
        name: _cpu.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=name).tobytes()
        for name, there in cpu.isas().items()
        if there and name in ("avx512", "avx2", "ref")
    }
    assert len(set(results.values())) == len(results)


def test_each_isa_multiplies_bf16_in_its_own_way(normal):
    x, weight, bias = normal(9, 768), normal(64, 768), normal(64)
    results = {
        name: _cpu.Linear(weight, bias, isa=name, precision="bf16")(x).tobytes()
        for name, there in cpu.isas().items()
        if there and name in ("avx512_bf16", "avx512", "ref")  # avx2 adds in the order of avx512: the same bits
    }
    assert len(set(results.values())) == len(results)


def test_the_environment_forces_one(monkeypatch, isa):
    monkeypatch.setenv("DISTILFAST_ISA", isa)
    assert cpu.chosen_isa() == (isa, "DISTILFAST_ISA asks for it")


@pytest.mark.parametrize("name", ["sse9", "AVX2", "amx "])
def test_an_unknown_isa_is_an_error(monkeypatch, name):
    monkeypatch.setenv("DISTILFAST_ISA", name)
    with pytest.raises(
        BackendError,
        match=r"^DISTILFAST_ISA .* is not known; there are avx512_bf16, avx512_vnni, avx512, avx2_vnni, avx2, ref\.$",
    ):
        cpu.chosen_isa()
    with pytest.raises(ValueError, match="is not known"):
        _cpu.Linear(np.ones((1, 1), np.float32), np.ones(1, np.float32), isa=name)


def test_wide_registers_stay_in_their_unit():
    """Every function that touches zmm or ymm registers belongs to an ISA unit.

    An inline function compiled in two units with different flags would be merged by the linker, and a narrow machine
    would meet an illegal instruction. The names in those units are all local, and their functions are known.
    """
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-C", _cpu.__file__], capture_output=True, text=True, check=True
    ).stdout
    wide = set()
    function = ""
    for line in listing.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = header[1]
        elif "%zmm" in line or "%ymm" in line:
            wide.add(function)
    own = re.compile(r"distilfast::\(anonymous namespace\)::")
    assert wide, "no wide register anywhere: the ISA units were not compiled for their ISA"
    assert [name for name in wide if not own.search(name)] == []
