"""nvcc compiles every source for Hopper: nothing is spilled, products run on tensor cores, loops are short."""

from __future__ import annotations

import re

import compiled
import pytest


@pytest.fixture(scope="module")
def nvcc():
    if compiled.nvcc() is None:
        pytest.skip(f"nvcc is not installed (pip install {compiled.NVCC_PACKAGES})")


@pytest.fixture(scope="module")
def kernels(nvcc):
    return compiled.kernels(compiled.TESTED)


def test_the_front_end_accepts_every_source(nvcc, tmp_path):
    """In one translation unit, which takes seconds; all that follows needs the machine code, which takes a minute."""
    every = tmp_path / "every.cu"
    sources = sorted(path.relative_to(compiled.SOURCES.parent) for path in compiled.SOURCES.rglob("*.cu"))
    every.write_text("".join(f'#include "{source}"\n' for source in sources), encoding="utf-8")
    assert compiled.front_end(every) == ""


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


STEPS = {
    "linear_kernel bf16": {(16, 16): 75, (64, 32): 106, (64, 64): 178, (128, 128): 243},
    "linear_kernel fp16": {(16, 16): 75, (64, 32): 106, (64, 64): 178, (128, 128): 243},
    "linear_kernel fp32": {(16, 16): 212, (64, 32): 442, (64, 64): 859, (128, 128): 1355},
    "linear_kernel w8a16": {(16, 16): 139, (64, 32): 248},
    "linear_w8a8_kernel": {(64, 64): 374, (128, 128): 591},
    "linear_add_layer_norm_kernel bf16": {(64, 96): 209, (128, 192): 290},
    "linear_add_layer_norm_kernel fp16": {(64, 96): 209, (128, 192): 290},
    "linear_add_layer_norm_kernel fp32": {(64, 96): 1109},
}
"""Most instructions of a warp in a step of the main loop, by CTA tile: what nvcc 13.0 gives, and a twentieth."""
ROUNDS = {
    "add_layer_norm_kernel": 8,  # rows, gathered row, x, the other splits, bias, residual, the norm's weight and bias
    "embed_kernel": 8,
    "attention_kernel": 2,  # sequences, cu_seqlens
    "linear": 2,  # rows, gathered rows; x, W and the bias are copied
}
"""Most rounds of global loads before a kernel's first barrier, each of which waits for the one before."""


def test_addresses_do_not_outweigh_products(disassembled):
    steps = {name: {} for name in STEPS}
    for kernel in disassembled:
        if kernel.name.startswith("linear"):
            name = re.sub(r"( \d+)+$", "", kernel.name)
            steps[name][kernel.tile[:2]] = kernel.step().total()
    assert {name: steps[name].keys() for name in steps} == {name: STEPS[name].keys() for name in STEPS}
    assert [(name, tile) for name in STEPS for tile in STEPS[name] if steps[name][tile] > STEPS[name][tile]] == []


def test_loads_do_not_wait_for_one_another(disassembled):
    for name, most in ROUNDS.items():
        rounds = {kernel.name: kernel.load_rounds() for kernel in disassembled if kernel.name.startswith(name)}
        assert rounds
        assert {name: count for name, count in rounds.items() if count > most} == {}


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


def test_the_build_compiles_as_the_tests_do():
    cmake = " ".join((compiled.ROOT / "CMakeLists.txt").read_text(encoding="utf-8").split())
    assert " ".join(compiled.FLAGS) in cmake


def test_no_sum_is_joined_with_a_product(disassembled):
    """Unless the source says fmaf: the graph's kernels and the persistent one, which share it, have the same bits."""
    assert {kernel.name: kernel.contractible for kernel in disassembled if kernel.contractible} == {}
    assert any(kernel.count("FFMA") for kernel in disassembled)
