"""nvcc compiles every source for Hopper: nothing is spilled, products run on tensor cores."""

from __future__ import annotations

import re

import compiled
import pytest


@pytest.fixture(scope="module")
def kernels():
    if compiled.nvcc() is None:
        pytest.skip(f"nvcc is not installed (pip install {compiled.NVCC_PACKAGES})")
    return compiled.kernels(compiled.TESTED)


def test_every_kernel_is_there(kernels):
    names = {kernel.name for kernel in kernels}
    assert {kernel.source for kernel in kernels} == {path.stem for path in compiled.SOURCES.rglob("*.cu")}
    assert len(kernels) == len(names) * len(compiled.TESTED)


def test_nothing_is_spilled(kernels):
    assert [kernel for kernel in kernels if kernel.spilled or kernel.stack] == []


@pytest.fixture(scope="module")
def disassembled(kernels):
    if compiled.cuobjdump() is None:
        pytest.skip("cuobjdump is not installed (pip install nvidia-cuda-cuobjdump, or triton)")
    return kernels


def test_products_run_on_tensor_cores(disassembled):
    for kernel in disassembled:
        is_product = kernel.name.startswith(("linear", "attention_kernel", "persistent_kernel"))
        assert (kernel.count(*compiled.MATRIX_INSTRUCTIONS) > 0) == is_product, kernel.name


def test_a_layer_norm_loads_its_row_at_once(disassembled):
    """Rows, gathered row, x, the other splits, bias, residual, then the weight and bias of the norm."""
    rows = [kernel for kernel in disassembled if kernel.name.startswith(("add_layer_norm_kernel", "embed_kernel"))]
    assert len(rows) == 6 * len(compiled.TESTED)
    assert [kernel.name for kernel in rows if kernel.load_rounds() > 8] == []


def test_integers_are_multiplied_as_integers(disassembled):
    w8a8 = [kernel for kernel in disassembled if kernel.name.startswith("linear_w8a8_kernel")]
    assert len(w8a8) == 2 * len(compiled.TESTED)
    for kernel in disassembled:
        assert (kernel.count("IMMA") > 0) == (kernel in w8a8), kernel.name


BEFORE_A_FORWARD = ("pack", "unpack_device_batch_kernel")
"""Kernels that are launched on a stream, where each ends before the next begins."""


def test_a_kernel_waits_before_it_reads_what_another_writes(disassembled):
    """Nothing but copies of W and of the bias to shared memory precedes the wait; dependents are released after it."""
    in_graphs = [kernel for kernel in disassembled if not kernel.name.startswith((*BEFORE_A_FORWARD, "persistent"))]
    assert len(in_graphs) > 30
    for kernel in in_graphs:
        assert (kernel.count(compiled.WAIT), kernel.count(compiled.RELEASE)) == (1, 1), kernel.name
        opcodes = [each.opcode for each in kernel.code]
        wait = opcodes.index(compiled.WAIT)
        assert wait < opcodes.index(compiled.RELEASE), kernel.name
        early = {each for each in opcodes[:wait] if re.match("(LD|ST|ATOM|RED|EXIT)", each)} - {"LDC"}
        assert early == ({"LDGSTS"} if kernel.name.startswith("linear") else set()), kernel.name
