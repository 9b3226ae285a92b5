"""The CUDA sources on the simulated device of tests/cuda_host, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from distilfast.backends import cuda

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install {name})")
    return found


@pytest.fixture(scope="session")
def host_build() -> Path:
    """The folder with the modules over the simulated device, built where a source has changed."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    build = ROOT / "build" / f"cuda-host-{sys.implementation.cache_tag}"
    configure = [
        *(tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        *("-DCUDA_HOST=ON", "-DPYTHON_MODULE=OFF", "-DWERROR=ON"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    targets = ["--target", "_cuda_host", "--target", "_cuda_faults"]
    for command in (configure, [tool("cmake"), "--build", str(build), *targets]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


def imported(name: str, directory: Path) -> ModuleType:
    (path,) = directory.glob(f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def extension(request: pytest.FixtureRequest) -> ModuleType:
    """``_cuda``: over the simulated device, and the real one."""
    if request.param == "host":
        return imported("_cuda_host", request.getfixturevalue("host_build"))
    if reason := cuda.unavailable():
        pytest.skip(reason)
    return cuda.extension()


@pytest.fixture(scope="session")
def faults(host_build: Path) -> ModuleType:
    """Kernels with planted bugs."""
    return imported("_cuda_faults", host_build)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded: a failure comes back."""
    return np.random.default_rng(2026)


@pytest.fixture
def normal(rng: np.random.Generator):
    """``normal(*shape)``: float32 from a normal distribution."""

    def make(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return make
