"""What nvcc compiles csrc/cuda to: registers, spills and instructions of each kernel on each architecture.

``python tests/cuda/compiled.py`` prints the table of every architecture, and fails where a kernel spills: the tests
compile for one, a minute less on two cores. Results are cached in build/ until a source changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
EVERY_ARCHITECTURE = {"80": ("80", "86", "89"), "90a": ("90a",)}
"""Machine code by the PTX it is compiled from: one for Ampere and Ada, since the sources distinguish only 9.0."""
TESTED = {"90a": ("90a",)}
"""The architecture that the kernels are designed for."""
Targets = Mapping[str, tuple[str, ...]]
NVCC_PACKAGES = " ".join(
    f"nvidia-{name}==13.0.*" for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
)
FLAGS = ("-std=c++20", "--expt-relaxed-constexpr", "-fmad=false")
"""What decides the code of a kernel; the same in CMakeLists.txt."""
MATRIX_INSTRUCTIONS = ("HMMA", "IMMA")
"""The SASS opcodes for floating-point numbers, and for integers."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?Used (\d+) registers", re.DOTALL)
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_FUNCTION = re.compile(r"arch = sm_(\w+)|Function : (\w+)")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?((\w+)[^;]*);")
_TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")
WAIT, RELEASE = "ACQBULK", "PREEXIT"
"""The SASS opcodes of ``wait_for_predecessor`` and ``release_dependents``."""
_TYPES = {"f": "fp32", "6__half": "fp16", "13__nv_bfloat16": "bf16"}


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction; ``target``: where a branch goes."""

    address: int
    opcode: str
    target: int | None


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture.

    ``contractible``: sums and products of its PTX that the assembler may join to one instruction, with other bits.
    ``code`` is empty and ``contractible`` zero without cuobjdump.
    """

    source: str
    name: str
    architecture: str
    registers: int
    stack: int
    spilled: int
    code: tuple[Instruction, ...]
    contractible: int

    @property
    def tile(self) -> tuple[int, ...]:
        """The numbers of its template; of a linear those of its CTA tile, see tiles.cuh."""
        return tuple(int(word) for word in self.name.split() if word.isdigit())

    def count(self, *opcodes: str) -> int:
        return sum(each.opcode in opcodes for each in self.code)

    def load_rounds(self) -> int:
        """Groups of global loads before the first barrier, with stores or branches between them.

        What is not in one group waits for the group before.
        """
        rounds, last = 0, ""
        for each in self.code:
            if each.opcode == "BAR":
                break
            if each.opcode in ("LDG", "STG", "LDS", "STS", "BRA", "EXIT"):
                rounds += each.opcode == "LDG" != last
                last = each.opcode
        return rounds

    def step(self) -> Counter[str]:
        """Opcodes that a warp executes in a step of a linear's main loop; of a branch both sides are counted.

        That is the loop with both copies and products; the k-tiles of a step may be a loop inside it.
        """
        outer = max(self._loops(), key=lambda loop: (self._of(loop)["LDGSTS"] > 0) * sum(self._products(loop)))
        executed = Counter(self._of(outer))
        for inner in self._loops():
            if outer[0] < inner[0] and inner[1] < outer[1] and sum(self._products(inner)):
                k_warps, k_tiles = self.tile[4:6]
                for opcode, count in self._of(inner).items():
                    executed[opcode] += count * (k_tiles // k_warps - 1)
        return executed

    def _loops(self) -> list[tuple[int, int]]:
        branches = ((each.target, each.address) for each in self.code if each.target is not None)
        return [(target, address) for target, address in branches if target < address]

    def _of(self, loop: tuple[int, int]) -> Counter[str]:
        return Counter(each.opcode for each in self.code if loop[0] <= each.address <= loop[1])

    def _products(self, loop: tuple[int, int]) -> list[int]:
        return [self._of(loop)[each] for each in MATRIX_INSTRUCTIONS]


def nvcc() -> str | None:
    """The compiler, if there is one: on PATH, or the one in NVIDIA's packages (see NVCC_PACKAGES)."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return shutil.which("nvcc") or next((found for each in places if (found := _in(Path(each) / "cu13"))), None)


def _in(toolkit: Path) -> str | None:
    return shutil.which("nvcc", path=str(toolkit / "bin"))


def cuobjdump() -> str | None:
    """The disassembler: beside nvcc, on PATH, or the one in the triton package."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found or spec is None or spec.origin is None:
        return found
    return shutil.which("cuobjdump", path=str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))


def kernels(targets: Targets) -> list[Kernel]:
    """Every kernel of every source for every architecture of ``targets``."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda source: _kernels(source, targets), sorted(SOURCES.rglob("*.cu")))
        return [kernel for each in found for kernel in each]


def front_end(source: Path) -> str:
    """What nvcc says of ``source`` for Hopper, with every template instantiated and no machine code made."""
    to_ptx = ("-arch=compute_90a", "-ptx", "-Xcicc", "-O0", "-o", os.devnull)
    command = [str(nvcc()), *FLAGS, *to_ptx, "-I", str(SOURCES.parent), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def _kernels(source: Path, targets: Targets) -> list[Kernel]:
    fatbin, log = _compile(source, targets)
    code, contractible = _instructions(fatbin), _contractible(fatbin)
    kernels = []
    for part in re.split("(?=Compiling entry function)", log)[1:]:  # an entry, then the functions that it calls
        entry = _ENTRY.match(part)
        assert entry is not None
        name, architecture, registers = entry.groups()
        stack, stores, loads = (sum(map(int, column)) for column in zip(*_STACK.findall(part), strict=True))
        kernels.append(
            Kernel(
                source.stem,
                _readable(name),
                architecture,
                int(registers),
                stack,
                stores + loads,
                tuple(code[name, architecture]),
                contractible[name],
            )
        )
    return kernels


def _compile(source: Path, targets: Targets) -> tuple[Path, str]:
    every = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cu", ".cuh", ".h"))
    parts = [repr(sorted(targets.items())).encode(), *(path.read_bytes() for path in every)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    fatbin = ROOT / "build" / "cuda-compiled" / f"{source.stem}-{digest}.fatbin"
    log = fatbin.with_suffix(".log")
    if not log.exists():
        fatbin.parent.mkdir(parents=True, exist_ok=True)
        codes = {
            virtual: ",".join((f"compute_{virtual}", *(f"sm_{each}" for each in real)))
            for virtual, real in targets.items()
        }
        compiler = nvcc()
        assert compiler is not None
        command = [
            compiler,
            *FLAGS,
            "-Xptxas=-v",
            "-I",
            str(SOURCES.parent),
            *(f"-gencode=arch=compute_{virtual},code=[{code}]" for virtual, code in codes.items()),
        ]
        done = subprocess.run([*command, "-fatbin", str(source), "-o", str(fatbin)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
    return fatbin, log.read_text(encoding="utf-8")


def _instructions(fatbin: Path) -> defaultdict[tuple[str, str], list[Instruction]]:
    code: defaultdict[tuple[str, str], list[Instruction]] = defaultdict(list)
    tool = cuobjdump()
    if tool is None:
        return code
    text = subprocess.run([tool, "-sass", str(fatbin)], capture_output=True, text=True, check=True).stdout
    architecture = name = ""
    for line in text.splitlines():
        if found := _INSTRUCTION.search(line):
            target = _TARGET.search(found[2]) if found[3] == "BRA" else None
            opcode = "NOP" if "@!PT " in line else found[3]  # never executed
            code[name, architecture].append(Instruction(int(found[1], 16), opcode, target and int(target[1], 16)))
        elif found := _FUNCTION.search(line):
            architecture, name = found[1] or architecture, found[2] or name
    return code


def _contractible(fatbin: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    tool = cuobjdump()
    if tool is None:
        return counts
    text = subprocess.run([tool, "-ptx", str(fatbin)], capture_output=True, text=True, check=True).stdout
    for entry in text.split(".entry ")[1:]:
        name = re.match(r"\w+", entry)
        assert name is not None
        counts[name[0]] += len(re.findall(r"\b(?:add|sub|mul)(?:\.ftz)?\.f32\b", entry))
    return counts


def _readable(mangled: str) -> str:
    """``linear_kernel fp32 16 16 …``: the template's type and numbers."""
    name, rest = "", mangled.removeprefix("_ZN")
    while found := re.match(r"\d+", rest):  # each name is preceded by its length; the function's is the last
        end = found.end() + int(found[0])
        name, rest = rest[found.end() : end], rest[end:]
    kind = re.search(r"_kernelI(f|6__half|13__nv_bfloat16)", mangled)
    is_w8a16 = "5W8A16E" in mangled
    numbers = re.findall(r"Li(\d+)E", mangled)
    words = [name or mangled, "w8a16" if is_w8a16 else _TYPES[kind[1]] if kind else "", *numbers]
    return " ".join(word for word in words if word)


if __name__ == "__main__":
    print("| kernel | sm | registers | spilled bytes | matrix instructions |\n|---|---|---|---|---|")
    every = kernels(EVERY_ARCHITECTURE)
    for each in every:
        matrix = each.count(*MATRIX_INSTRUCTIONS)
        print(f"| {each.name} | {each.architecture} | {each.registers} | {each.spilled} | {matrix} |")
    sys.exit(any(each.spilled or each.stack for each in every))
