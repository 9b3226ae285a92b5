"""The forced ISA runs and no other, and only the ISA units use vector and tile registers."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from identities import owners

from distilfast import _cpu
from distilfast.backends import cpu
from distilfast.errors import BackendError


def results(linear_or_norm, *names):
    """The results of those of these ISAs that this machine has."""
    return [linear_or_norm(name).tobytes() for name in names if cpu.isas()[name]]


def test_each_isa_has_its_own_layer_norm(normal):
    """The number of lanes in LayerNorm's sums differs by ISA, so the last bits tell which ISA a table really runs.

    The ISAs left out add products of low precision to one of these, and share the rest with it.
    """
    x, residual, weight, bias = normal(9, 768), normal(9, 768), normal(768), normal(768)
    found = results(
        lambda isa: _cpu.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=isa), "ref", "avx2", "avx512"
    )
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("isas", [("ref", "avx2"), ("ref", "avx512", "avx512_bf16", "amx")])
def test_each_isa_has_its_own_bf16_product(normal, isas):
    """avx2 and avx512 have the same bits: one chain for each element of C."""
    x, weight, bias = normal(9, 768), normal(64, 768), normal(64)
    found = results(lambda isa: _cpu.Linear(weight, bias, isa=isa, precision="bf16")(x), *isas)
    assert len(set(found)) == len(found)


# What Linux calls the instructions of an ISA, in /proc/cpuinfo.
AVX512 = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
INSTRUCTIONS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx2_vnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512": AVX512,
    "avx512_vnni": AVX512 | {"avx512_vnni"},
    "avx512_bf16": AVX512 | {"avx512_vnni", "avx512_bf16"},
    "neon_dotprod": {"asimddp"},
    "neon_i8mm": {"asimddp", "i8mm"},
    "neon_bf16": {"asimddp", "i8mm", "bf16"},
}


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc/cpuinfo is Linux's")
def test_the_isas_of_this_machine_are_those_that_linux_sees():
    """A compiler's own question to the processor may answer no to everything, and `ref` would run."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert {isa: cpu.isas()[isa] for isa in INSTRUCTIONS} == {isa: it <= words for isa, it in INSTRUCTIONS.items()}


# The function that each ISA's table holds for fp32, bf16x3, bf16 and int8, by its owner.
LINEAR = {
    "ref": ("ref fp32", "ref fp32", "ref bf16", "ref int8"),
    "avx2": ("avx2 fp32", "avx2 fp32", "avx2 bf16", "avx2 int8"),
    "avx2_vnni": ("avx2 fp32", "avx2 fp32", "avx2 bf16", "avx2_vnni int8"),
    "avx512": ("avx512 fp32", "avx512 fp32", "avx512 bf16", "avx512 int8"),
    "avx512_vnni": ("avx512 fp32", "avx512 fp32", "avx512 bf16", "avx512_vnni int8"),
    "avx512_bf16": ("avx512 fp32", "avx512 fp32", "avx512_bf16 bf16", "avx512_vnni int8"),
    "amx": ("amx fp32", "amx bf16x3", "amx bf16", "amx int8"),
}
ATTENTION = {
    "ref": ("ref fp32", "ref fp32", "ref bf16", "ref bf16"),
    "avx2": ("avx2 fp32",) * 4,
    "avx2_vnni": ("avx2 fp32",) * 4,
    "avx512": ("avx512 fp32",) * 4,
    "avx512_vnni": ("avx512 fp32",) * 4,
    "avx512_bf16": ("avx512 fp32", "avx512 fp32", "avx512_bf16 bf16", "avx512_bf16 bf16"),
    "amx": ("avx512 fp32", "avx512 fp32", "avx512_bf16 bf16", "avx512_bf16 bf16"),
}
NORMS = {isa: ("avx512 fp32" if row[0] in ("amx fp32", "avx512 fp32") else row[0],) for isa, row in LINEAR.items()}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tables are those of x86-64")
@pytest.mark.parametrize(
    ("operation", "table"),
    [("linear", LINEAR), ("attention", ATTENTION), ("embed", NORMS), ("add_layer_norm", NORMS)],
)
def test_what_is_shared_is_the_same_function(operation, table):
    """The tests of an operation run each distinct function once: that suffices only while these tables are right.

    ISAs that this processor lacks are included: their tables are compiled in.
    """
    first = {identity: " ".join(kernel) for identity, kernel in owners(operation).items()}
    identities = _cpu.kernel_identities()
    found = {
        isa: tuple(first[own[operation, each]] for each in cpu.PRECISIONS if (operation, each) in own)
        for isa, own in identities.items()
    }
    assert found == table


def test_simulated_amx_shares_what_amx_shares(amx_simulated_module):
    """No other ISA shares its linears; everything else is avx512_bf16's."""
    tables = amx_simulated_module.kernel_identities()
    simulated, real = tables.pop("amx_simulated"), tables["avx512_bf16"]
    of_others = {identity for table in tables.values() for identity in table.values()}
    for key, identity in simulated.items():
        assert (identity not in of_others) if key[0] == "linear" else (identity == real[key])
    assert len({identity for key, identity in simulated.items() if key[0] == "linear"}) == len(cpu.PRECISIONS)


def test_the_environment_forces_an_isa(monkeypatch, isa):
    monkeypatch.setenv("DISTILFAST_ISA", isa)
    assert cpu.chosen_isa() == (isa, "DISTILFAST_ISA asks for it")


@pytest.mark.parametrize("name", ["sse9", "AVX2", "amx "])
def test_an_unknown_isa_is_an_error(monkeypatch, name):
    monkeypatch.setenv("DISTILFAST_ISA", name)
    with pytest.raises(
        BackendError,
        match=r"^DISTILFAST_ISA .* is not known; "
        r"there are amx, avx512_bf16, avx512_vnni, avx512, avx2_vnni, avx2, "
        r"neon_bf16, neon_i8mm, neon_dotprod, neon, ref(; the nearest is amx)?\.$",
    ):
        cpu.chosen_isa()
    with pytest.raises(ValueError, match="is not known"):
        _cpu.Linear(np.ones((1, 1), np.float32), np.ones(1, np.float32), isa=name)


def test_an_isa_that_this_machine_lacks_is_an_error(monkeypatch):
    """One sentence that says what lacks it, from the backend and from the kernels."""
    lacking = [name for name, there in cpu.isas().items() if not there]
    if not lacking:
        pytest.skip("this machine has every ISA")
    for name in lacking:
        monkeypatch.setenv("DISTILFAST_ISA", name)
        with pytest.raises(BackendError, match=rf"^DISTILFAST_ISA '{name}' is not supported by this \w+ ?.*\.$"):
            cpu.chosen_isa()
        with pytest.raises(ValueError, match=rf"^ISA '{name}' is not supported by this \w+ ?.*\.$"):
            _cpu.Linear(np.ones((1, 1), np.float32), np.ones(1, np.float32), isa=name)


def test_only_isa_units_use_vector_registers():
    """Every function that uses zmm, ymm or tile registers belongs to an ISA unit.

    The linker would merge an inline function that two units compile with different flags, and a processor without
    the ISA would meet an illegal instruction. So everything in those units is in an anonymous namespace.
    """
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-C", _cpu.__file__], capture_output=True, text=True, check=True
    ).stdout
    users = set()
    function = ""
    for line in listing.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = header[1]
        elif "%zmm" in line or "%ymm" in line or "%tmm" in line:
            users.add(function)
    own = re.compile(r"distilfast::\(anonymous namespace\)::")
    assert users, "no vector register anywhere: the ISA units were not compiled for their ISA"
    assert [name for name in users if not own.search(name)] == []
