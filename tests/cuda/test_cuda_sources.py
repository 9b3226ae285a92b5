"""device.cuh and runtime.h alone reach the device, and the simulated device declares the same functions."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
SIMULATED = ROOT / "tests" / "cuda_host" / "cuda"
PRIMITIVES = re.compile(
    r"\basm\b|__shfl|__sync|__ballot|__cvta|__ffs|cooperative_groups|cudaLaunch|cudaMalloc|cudaMemcpy"
)


def functions(path: Path) -> set[str]:
    """Names of the functions that a header offers to kernels; the simulator's namespace ``host`` is left out."""
    text = re.sub(r"namespace host \{.*?\}  // namespace host", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(re.findall(r"^(?:__device__ )?inline [\w:<>, ]*?[\w>*] ?\*?(\w+)(?:<\w+>)?\(", text, flags=re.MULTILINE))


def test_both_devices_declare_the_same_functions():
    real, simulated = functions(SOURCES / "device.cuh"), functions(SIMULATED / "device.cuh")
    assert {"load", "store", "copy_async", "multiply_matrices", "shuffle_xor", "sync_grid"} <= real
    assert real - {"shared_address"} == simulated


def test_primitives_stay_in_two_headers():
    sources = (path for path in SOURCES.rglob("*") if path.is_file())
    others = [path for path in sources if path.name not in ("device.cuh", "runtime.h", "README.md")]
    assert [path.name for path in others if PRIMITIVES.search(path.read_text(encoding="utf-8"))] == []


def test_no_stream_is_captured():
    """While one is, a wait for the device is an error in every thread of the process, and ends the capture."""
    sources = [path for path in SOURCES.rglob("*") if path.is_file()]
    assert [path.name for path in sources if "BeginCapture" in path.read_text(encoding="utf-8")] == []


def test_kernels_access_memory_through_device_cuh_only():
    """A field that points to memory is never indexed or dereferenced: the simulator could not check such an access."""
    contract = (SOURCES / "kernels.h").read_text(encoding="utf-8")
    pointers = set(re.findall(r"\*\s?(\w+)[;,]", contract)) - {"packed"}
    direct = re.compile(
        rf"\b(?:op|norm|packed)\.(?:\w+\.)?({'|'.join(sorted(pointers))})\s*\[|\*\(?(?:op|norm)\.\w+ \+"
    )
    for path in SOURCES.rglob("*.cu*"):
        if path.name != "device.cuh":
            assert not direct.search(path.read_text(encoding="utf-8")), path.name
