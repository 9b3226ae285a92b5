"""nvcc compiles every source for Hopper: nothing is spilled, products run on tensor cores."""

from __future__ import annotations

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


def test_products_run_on_tensor_cores(kernels):
    if compiled.cuobjdump() is None:
        pytest.skip("cuobjdump is not installed (pip install nvidia-cuda-cuobjdump, or triton)")
    for kernel in kernels:
        is_product = kernel.name.startswith(("linear", "attention_kernel", "persistent_kernel"))
        assert (kernel.matrix > 0) == is_product, kernel


def test_a_layer_norm_loads_its_row_at_once(kernels):
    """Rows, gathered row, x, the other splits, bias, residual, then the weight and bias of the norm."""
    if compiled.cuobjdump() is None:
        pytest.skip("cuobjdump is not installed (pip install nvidia-cuda-cuobjdump, or triton)")
    rows = [kernel for kernel in kernels if kernel.name.startswith(("add_layer_norm_kernel", "embed_kernel"))]
    assert len(rows) == 6 * len(compiled.TESTED)
    assert [kernel for kernel in rows if kernel.load_rounds > 8] == []


def test_integers_are_multiplied_as_integers(kernels):
    if compiled.cuobjdump() is None:
        pytest.skip("cuobjdump is not installed (pip install nvidia-cuda-cuobjdump, or triton)")
    w8a8 = [kernel for kernel in kernels if kernel.name.startswith("linear_w8a8_kernel")]
    assert len(w8a8) == 2 * len(compiled.TESTED)
    for kernel in kernels:
        assert (kernel.integer > 0) == (kernel in w8a8), kernel
