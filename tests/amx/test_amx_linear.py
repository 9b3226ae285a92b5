"""Simulated AMX linears compared with those of the vector ISAs, and the instructions of the real kernels."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import numpy as np
import pytest

from distilfast import _cpu
from distilfast.quantize import outlier_channels
from tests.pinned import outputs

SIZES = ((1, 1, 1), (16, 32, 64), (17, 33, 65), (33, 48, 1100), (70, 100, 768), (550, 65, 130))


@pytest.mark.parametrize("threads", [1, 3])
def test_int8_has_the_bits_of_the_vector_isas(amx_simulated, threads):
    """Each element is the same chain of the same exact sums; the fixture's ``_cpu`` has both ISAs."""
    rng = np.random.default_rng(2026)
    for tokens, n, k in SIZES:
        x, weight, bias, shift = (rng.standard_normal(s).astype(np.float32) for s in ((tokens, k), (n, k), n, k))
        outliers = np.sort(rng.permutation(k)[: outlier_channels(k)]).astype(np.int32)
        how = {"precision": "int8", "threads": threads}
        got = _cpu.Linear(weight, bias, shift, outliers, isa="amx_simulated", **how)(x, "gelu")
        assert np.array_equal(got, _cpu.Linear(weight, bias, shift, outliers, isa="avx512", **how)(x, "gelu"))


def test_silicon_has_the_bits_of_the_simulated_unit(amx_simulated_module, tmp_path):
    """Every linear and whole models in all precisions, by their hashes."""
    if missing := dict(_cpu.isas())["amx"]:
        pytest.skip(f"amx {missing}")
    made = outputs.checkpoints(tmp_path)
    real, simulated = (
        [(key.removeprefix(isa), bits) for key, bits in outputs.on_cpu(module, isa, made)]
        for module, isa in ((_cpu, "amx"), (amx_simulated_module, "amx_simulated"))
    )
    assert real == simulated


# Rounding to bf16 has a relative error of at most 2^-8, so each further term is at most 2^-8 of the one before. bf16:
# both operands have that error. bf16x3: both have 2^-16, and lo·lo is omitted. fp32: mid·lo and lo·mid are omitted,
# 2^-24 each, and the sum is rounded. The factor 1.01 below covers the second-order terms.
MAX_RELATIVE_ERROR = {"bf16": 2 * 2.0**-8, "bf16x3": 3 * 2.0**-16, "fp32": 3 * 2.0**-24}


@pytest.mark.parametrize("precision", MAX_RELATIVE_ERROR)
def test_every_product_is_within_its_relative_error(amx_simulated, precision):
    """K = 1: each element is one product of two values, summed over their bf16 terms, across many binades."""
    rng = np.random.default_rng(2026)
    x, weight = (
        (rng.choice([-1, 1], n) * 2 ** rng.uniform(-30, 30, n)).astype(np.float32)[:, None] for n in (200, 210)
    )
    got = _cpu.Linear(weight, np.zeros(210, np.float32), isa="amx_simulated", precision=precision)(x)
    truth = x.astype(np.float64) @ weight.astype(np.float64).T
    assert (np.abs(got - truth) <= 1.01 * MAX_RELATIVE_ERROR[precision] * np.abs(truth)).all()


def test_small_terms_are_not_lost_beside_a_large_value(amx_simulated):
    """The small products of all of K are summed apart and then added: one by one each would be rounded away by 2^24."""
    k = 4096
    weight = np.full((1, k), 1 + 2.0**-12, np.float32)  # the second term is 2^-12
    x = np.ones((1, k), np.float32)
    x[0, 0] = 2.0**24
    truth = float(x[0].astype(np.float64) @ weight[0].astype(np.float64))
    got = _cpu.Linear(weight, np.zeros(1, np.float32), isa="amx_simulated")(x)[0, 0]
    naive = np.float32(0)
    for product in x[0] * weight[0]:
        naive += product
    assert abs(got - truth) <= abs(naive - truth) / 4


def test_the_simulated_isa_is_in_no_other_build():
    assert "amx_simulated" not in dict(_cpu.isas())
    assert "amx" in dict(_cpu.isas())


def test_the_real_kernels_use_tile_instructions():
    """Read from the disassembly, so that it is checked on processors without AMX too."""
    if platform.machine() != "x86_64":
        pytest.skip("there are no AMX kernels for this processor")
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    command = ["objdump", "-d", "--no-show-raw-insn", _cpu.__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    products = re.findall(r"(tdp\w+)\s+%tmm(\d),%tmm(\d),%tmm(\d)", listing)
    assert {name for name, *_ in products} == {"tdpbf16ps", "tdpbssd"}
    for _, columns, rows, sums in products:
        assert int(sums) < 4 <= int(rows) < int(columns), "accumulators are tiles 0 to 3, then x, then W"
    count = {name: len(re.findall(rf"\b{name}\b", listing)) for name in ("ldtilecfg", "tilerelease")}
    assert count["ldtilecfg"] >= 4, "each linear configures the tiles"
    assert count["tilerelease"] >= count["ldtilecfg"]
