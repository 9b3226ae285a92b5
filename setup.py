"""Builds `distilfast._cpu`, and `_cuda` where there is an nvcc, by driving CMakeLists.txt.

Everything else about the package is in pyproject.toml. `CMAKE_ARGS=-DCUDA=OFF` leaves `_cuda` out, `-DCUDA=ON` insists.
`DISTILFAST_BUILD` is another build folder than this interpreter's own: release/wheels.py has one for several.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """`cmake` or `ninja`: beside this interpreter first (a virtual environment need not be activated), then PATH."""
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        sys.exit(f"error: {name} is not installed; run `pip install {name}`.")
    return found


def check_compiler() -> None:
    """Exits with a sentence where there is no C++ compiler, of which CMake says it at more length."""
    compilers = (os.environ["CXX"].split()[0],) if os.environ.get("CXX") else ("c++", "g++", "clang++")
    is_named = "CMAKE_TOOLCHAIN_FILE" in os.environ.get("CMAKE_ARGS", "")
    if os.name == "posix" and not is_named and not any(map(shutil.which, compilers)):
        sys.exit(
            f"error: there is no C++ compiler ({' or '.join(compilers)}); install one (Debian: apt-get install "
            "g++, macOS: xcode-select --install), or install distilfast from a wheel."
        )


class CMakeBuild(build_ext):
    """One Extension is one CMake target of the same name."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11  # present in the build environment only

        check_compiler()
        target = ext.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Not self.build_temp, which pip empties between editable builds: this one lets ninja build only what changed,
        # and make and the tests build theirs of the same objects there. Who comes second waits.
        build = Path(os.environ.get("DISTILFAST_BUILD", ROOT / "build" / f"module-{sys.implementation.cache_tag}"))
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *(tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DPYTHON_MODULE=ON",
            f"-DCUDA={'ON' if '_cuda' in modules() else 'OFF'}",  # said, or CMake would remember an earlier build's
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        with (build / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run(configure, check=True)
            subprocess.run([tool("cmake"), "--build", str(build), "--target", target], check=True)


def modules() -> list[str]:
    arguments = os.environ.get("CMAKE_ARGS", "").split()
    wanted = "-DCUDA=ON" in arguments or shutil.which(os.environ.get("CUDACXX", "nvcc"))
    return ["_cpu", "_cuda"] if wanted and "-DCUDA=OFF" not in arguments else ["_cpu"]


if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("error: distilfast has not been tried on free-threaded Python; use the build that has the GIL.")
setup(
    ext_modules=[Extension(f"distilfast.{name}", sources=[]) for name in modules()],
    cmdclass={"build_ext": CMakeBuild},
)
