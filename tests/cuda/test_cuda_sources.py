"""The seam between the kernels and the device: what stands on which side of it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
TWINS = ROOT / "tests" / "cuda_host" / "cuda"
PRIMITIVES = re.compile(
    r"\basm\b|__shfl|__sync|__ballot|__cvta|__ffs|cooperative_groups|cudaLaunch|cudaMalloc|cudaMemcpy"
)


def functions(path: Path) -> set[str]:
    """Names of the functions that a header has for kernels; what is in the simulator's own namespace is its own."""
    text = re.sub(r"namespace host \{.*?\}  // namespace host", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return set(re.findall(r"^(?:__device__ )?inline [\w:<>, ]*?[\w>*] ?\*?(\w+)(?:<\w+>)?\(", text, flags=re.MULTILINE))


def test_both_devices_have_the_same_words():
    ours, twin = functions(SOURCES / "device.cuh"), functions(TWINS / "device.cuh")
    assert {"load", "store", "copy_async", "multiply_matrices", "shuffle_xor", "sync_grid"} <= ours
    assert ours - {"shared_address"} == twin - {"truncated"}


def test_primitives_stay_in_two_headers():
    sources = (path for path in SOURCES.rglob("*") if path.is_file())
    others = [path for path in sources if path.name not in ("device.cuh", "runtime.h", "README.md")]
    assert [path.name for path in others if PRIMITIVES.search(path.read_text(encoding="utf-8"))] == []


def test_kernels_touch_memory_through_the_seam_alone():
    """A field that points to memory is never indexed or dereferenced: such an access would go unchecked."""
    contract = (SOURCES / "kernels.h").read_text(encoding="utf-8")
    pointers = set(re.findall(r"\*\s?(\w+)[;,]", contract)) - {"packed"}
    direct = re.compile(
        rf"\b(?:op|norm|packed)\.(?:\w+\.)?({'|'.join(sorted(pointers))})\s*\[|\*\(?(?:op|norm)\.\w+ \+"
    )
    for path in SOURCES.rglob("*.cu*"):
        if path.name != "device.cuh":
            assert not direct.search(path.read_text(encoding="utf-8")), path.name
