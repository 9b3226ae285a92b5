"""What the tests build of the compiled rooms beside the installed modules: the same sources over simulated hardware."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install {name})")
    return found


def built(name: str, options: tuple[str, ...], targets: tuple[str, ...]) -> Path:
    """The folder build/``name``-<python> with these targets, built where a source has changed."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    build = ROOT / "build" / f"{name}-{sys.implementation.cache_tag}"
    configure = [
        *(tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        *("-DWERROR=ON", *options),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    wanted = [word for target in targets for word in ("--target", target)]
    for command in (configure, [tool("cmake"), "--build", str(build), *wanted]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


def imported(name: str, directory: Path) -> ModuleType:
    """The extension module ``name`` in ``directory``."""
    (path,) = directory.glob(f"{name}.*so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def amx_build() -> Path:
    """The folder with ``_cpu`` that has the ISA amx_simulated too, and ``_tile_unit``: see tests/amx/README.md."""
    return built("amx-simulated", ("-DAMX_SIMULATED=ON", "-DCUDA=OFF"), ("_cpu", "_tile_unit"))


def cuda_build() -> Path:
    """The folder with ``_cuda_host``, csrc/cuda over a simulated device, and ``_cuda_faults``."""
    return built("cuda-host", ("-DCUDA_HOST=ON", "-DPYTHON_MODULE=OFF"), ("_cuda_host", "_cuda_faults"))


def simulated_amx() -> ModuleType:
    """``distilfast._cpu`` with the ISA amx_simulated."""
    return imported("_cpu", amx_build())


def simulated_cuda() -> ModuleType:
    """``distilfast._cuda`` over the simulated device."""
    return imported("_cuda_host", cuda_build())
