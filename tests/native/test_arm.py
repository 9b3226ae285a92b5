"""The native tests of each ARM64 instruction set under qemu, cross-compiled by ``make arm``.

Compiling takes minutes of a core, so these tests run what ``make arm`` has built and skip where it has not. Budgets
and bits are tested here, once for each ISA; ``make arm`` runs all native tests. The host's processor does not matter:
qemu's ``max`` has every instruction, and its Cortex-A72 none beyond plain NEON.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "arm" / "native_tests"
ISAS = ("neon_bf16", "neon_i8mm", "neon_dotprod", "neon")
X86 = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2")
REFUSED = "is not supported by this processor"

# Mask and value of an instruction's word: qemu 7 does not know all their names.
OPCODES = {
    "sdot": (0xBFC0F400, 0x0F80E000),  # by element
    "smmla": (0xFFE0FC00, 0x4E80A400),
    "bfdot": (0xBFC0F400, 0x0F40F000),  # by element
    "bfmmla": (0xFFE0FC00, 0x6E40EC00),
}
EXECUTED = {
    "neon": set(),
    "neon_dotprod": {"sdot"},
    "neon_i8mm": {"smmla"},
    "neon_bf16": {"smmla", "bfdot", "bfmmla"},
}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (Debian: apt-get install qemu-user)")
    if not PROGRAM.exists():
        pytest.skip("the native tests are not compiled for ARM64; `make arm` does it")
    folders, suffixes = (ROOT / "csrc" / "cpu", ROOT / "csrc" / "common", ROOT / "tests" / "native"), (".h", ".cpp")
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    if max(path.stat().st_mtime for path in sources) > PROGRAM.stat().st_mtime:
        pytest.skip("a source is newer than the native tests for ARM64; `make arm` compiles them again")


def run(cpu: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = ["qemu-aarch64", "-cpu", cpu, *options, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("cpu", "supported"),
    [
        ("max", {*ISAS, "ref"}),
        ("neoverse-n1", {"neon_dotprod", "neon", "ref"}),
        ("cortex-a72", {"neon", "ref"}),
    ],
)
def test_the_system_tells_what_the_processor_has(cpu: str, supported: set[str]) -> None:
    told = dict(line.split(" ", 1) for line in run(cpu, "--isas").stdout.splitlines())
    assert list(told) == [*X86, *ISAS, "ref"]
    assert told == {name: "is supported" if name in supported else REFUSED for name in told}


@pytest.mark.parametrize("isa", [*ISAS[:-1], "avx2"])
def test_a_missing_isa_is_refused_in_a_sentence(isa: str) -> None:
    done = run("cortex-a72", f"--isa={isa}", "linear")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"ISA '{isa}' {REFUSED}.\n")


@pytest.mark.parametrize("isa", ISAS)
def test_kernels(isa: str) -> None:
    """Budgets, bits and bounds of each ISA; bits of fp32 and bf16 are also those of x86."""
    done = run("cortex-a72" if isa == "neon" else "max", f"--isa={isa}", "bits", "within", "embed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "5 passed, 0 failed\n"


@pytest.mark.parametrize("isa", ISAS)
def test_the_forced_isa_executes_its_instructions_and_no_others(isa: str, tmp_path: Path) -> None:
    """In the instructions that qemu translated: it translates a block when it first runs."""
    log = tmp_path / "log"
    tests = ("stride", "attention_m") if isa == "neon_bf16" else ("stride",)
    done = run("max", f"--isa={isa}", *tests, options=("-d", "in_asm", "-D", str(log)))
    assert done.returncode == 0, done.stdout + done.stderr
    words = {int(word, 16) for word in re.findall(r"^0x[0-9a-f]+:\s+([0-9a-f]{8})\s", log.read_text(), re.MULTILINE)}
    assert len(words) > 1000
    found = {name for name, (mask, value) in OPCODES.items() if any(word & mask == value for word in words)}
    assert found == EXECUTED[isa]
