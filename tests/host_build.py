"""What is built of the compiled rooms, in setup.py's folder: one compilation of csrc/cpu serves all of it.

``python tests/host_build.py [options of CMake] [targets]`` builds everything, or these targets: the installed module's
objects, the native tests, and the same sources over simulated hardware, which tests load from here.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / f"module-{sys.implementation.cache_tag}"
OPTIONS = ("-DPYTHON_MODULE=ON", "-DNATIVE_TESTS=ON", "-DAMX_SIMULATED=ON", "-DCUDA_HOST=ON")
AMX, CUDA = ("_cpu_simulated", "_tile_unit"), ("_cuda_host", "_cuda_faults")
EVERYTHING = ("cpu_bindings", "dispatch", "native_tests", *AMX, *CUDA)


def missing() -> str | None:
    """None, or what cannot be found that a build needs."""
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed (pip install pybind11)"
    for name in ("cmake", "ninja"):
        if tool(name) is None:
            return f"{name} is not installed (pip install {name})"
    return None


def tool(name: str) -> str | None:
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def build(targets: tuple[str, ...], options: tuple[str, ...] = ()) -> None:
    """Build ``targets`` where a source has changed; who comes second waits."""
    import pybind11

    cmake, ninja = tool("cmake"), tool("ninja")
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        *(*OPTIONS, *options),
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [cmake, "--build", str(BUILD), "--target", *targets]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)


def built(targets: tuple[str, ...], folder: str) -> Path:
    """``folder`` of the build folder, with ``targets``; a test skips where they cannot be built."""
    import pytest

    if reason := missing():
        pytest.skip(reason)
    build(targets)
    return BUILD / folder


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
    return built(AMX, "amx_simulated")


def cuda_build() -> Path:
    """The folder with ``_cuda_host``, csrc/cuda over a simulated device, and ``_cuda_faults``."""
    return built(CUDA, "cuda_host")


def simulated_amx() -> ModuleType:
    """``distilfast._cpu`` with the ISA amx_simulated."""
    return imported("_cpu", amx_build())


def simulated_cuda() -> ModuleType:
    """``distilfast._cuda`` over the simulated device."""
    return imported("_cuda_host", cuda_build())


if __name__ == "__main__":
    try:
        targets = tuple(word for word in sys.argv[1:] if not word.startswith("-"))
        build(targets or EVERYTHING, tuple(word for word in sys.argv[1:] if word.startswith("-")))
    except RuntimeError as error:
        sys.exit(str(error))
