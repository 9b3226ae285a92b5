"""Every kernel of a full-size DistilBERT, compiled for GPUs that are not here: no spills, and matrix instructions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

TARGETS = ("sm_80", "sm_90", "gfx942")
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory that a program may have; sm_80's entries serve the smaller sm_86 and sm_89 too."""
KERNELS = {"embed", "linear", "linear_gelu", "linear_relu", "attention", "add_layer_norm", "receive", "gather"}
WITH_DESCRIPTORS = {"persistent_linear", "persistent_linear_gelu"}  # 16-bit operands on sm_90


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """The target and a row for each kernel; compiled in a process in which kernels are not interpreted."""
    printed = subprocess.run(
        [sys.executable, "-m", "distilfast.kernels.ahead", "--json", "--target", request.param],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return request.param, [json.loads(line) for line in printed.splitlines()]


def test_every_kernel_in_every_type(compiled):
    target, rows = compiled
    assert {(row["kernel"], row["precision"]) for row in rows} >= {
        (kernel, precision) for kernel in KERNELS - {"linear_relu", "receive"} for precision in ("fp32", "bf16", "fp16")
    }
    persistent = {(row["kernel"], row["precision"]) for row in rows if row["kernel"] not in KERNELS}
    wanted = {(kernel, precision) for kernel in WITH_DESCRIPTORS for precision in ("bf16", "fp16")}
    assert persistent == (wanted if target == "sm_90" else set())


def test_blocks_are_loaded_through_descriptors(compiled):
    """Two loads a stage of the pipeline, from 1,024 tokens on."""
    for row in compiled[1]:
        persistent = row["kernel"] in WITH_DESCRIPTORS
        assert row["descriptor_loads"] == (2 * int(row["tile"].partition(" s")[2]) if persistent else 0), row
        assert not persistent or row["tokens"] >= 1024


def test_nothing_spills(compiled):
    _, rows = compiled
    assert [row for row in rows if row["spilled_bytes"]] == []


def test_shared_memory_fits(compiled):
    target, rows = compiled
    assert [row for row in rows if row["shared_bytes"] > SHARED_LIMIT[target]] == []


def test_a_layer_norm_of_many_rows_needs_no_shared_memory(compiled):
    rows = compiled[1]
    norms = [row for row in rows if row["kernel"] == "add_layer_norm" and row["tokens"] >= 4096]
    assert len(norms) == 3  # one of each precision
    assert [row for row in norms if row["shared_bytes"] or " w1 " not in row["tile"]] == []


def test_a_layer_norm_divides_with_correct_rounding(compiled):
    """With div.full.f32, 2 ulp, two operations exceed the budget of fp32; the interpreter rounds correctly anyway."""
    _, rows = compiled
    assert [row for row in rows if row["kernel"] in ("embed", "add_layer_norm") and row["full_divisions"]] == []


def test_only_weights_are_touched_before_the_kernel_before_has_ended(compiled):
    """On Hopper all but the first one start early. A LayerNorm loads its weight and bias, no other kernel loads.

    With 1,024 columns of fp32 in the registers of four warps, those are two loads each of 16 bytes a thread; of one
    warp, eight.
    """
    target, rows = compiled
    for row in rows:
        norm = row["kernel"] in ("embed", "add_layer_norm")
        dependent = target == "sm_90" and row["kernel"] != "receive"
        loads = 0 if not norm else 4 if " w4 " in row["tile"] else 16
        assert row["before_wait"] == (None if not dependent else f"{loads}, 0"), row


def test_matrix_instructions(compiled):
    """wgmma needs 64 rows and four warps; smaller tiles use the instructions of a single warp."""
    target, rows = compiled
    products = [row for row in rows if row["kernel"].startswith(("linear", "persistent", "attention"))]
    for row in products:
        large = target == "sm_90" and int(row["tile"].partition("×")[0]) >= 64
        assert row["matrix"] == ("mfma" if target == "gfx942" else "wgmma" if large else "mma"), row
    assert {row["matrix"] for row in products} == {"sm_80": {"mma"}, "sm_90": {"mma", "wgmma"}, "gfx942": {"mfma"}}[
        target
    ]
