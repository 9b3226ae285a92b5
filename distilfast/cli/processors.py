"""Which ISA a processor has by its model number, whatever a virtual machine lets it show.

Model numbers are those of Linux's intel-family.h and amd.c. A processor that is not in the table is not guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Intel, family 6: model -> ISA.
_INTEL = {
    **dict.fromkeys((0x6A, 0x6C), "avx512_vnni"),  # Ice Lake, servers
    **dict.fromkeys((0x8F, 0xCF, 0xAD, 0xAE), "amx"),  # Sapphire, Emerald and Granite Rapids
    0xAF: "avx2_vnni",  # Sierra Forest
}
_SKYLAKE_AND_SUCCESSORS = 0x55
# AMD: family, models, ISA.
_AMD = (
    (0x19, range(0x10, 0x20), "avx512_bf16"),  # Zen 4
    (0x19, range(0x60, 0x80), "avx512_bf16"),
    (0x19, range(0xA0, 0xB0), "avx512_bf16"),
    (0x1A, range(0x80), "avx512_bf16"),  # Zen 5
)


def facts(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What the system says about its first processor; empty where it says nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def known_isa(processor: Mapping[str, str]) -> str | None:
    """The fastest ISA that a processor of this model has; None where the model is not known."""
    try:
        family, model, stepping = (int(processor[name]) for name in ("cpu family", "model", "stepping"))
    except (KeyError, ValueError):
        return None
    if processor.get("vendor_id") == "GenuineIntel" and family == 6:
        return _skylake(stepping) if model == _SKYLAKE_AND_SUCCESSORS else _INTEL.get(model)
    if processor.get("vendor_id") == "AuthenticAMD":
        return next((isa for of, models, isa in _AMD if of == family and model in models), None)
    return None


def _skylake(stepping: int) -> str:
    """Skylake, Cascade Lake from stepping 5 on, Cooper Lake from 10 on."""
    return "avx512_bf16" if stepping >= 10 else "avx512_vnni" if stepping >= 5 else "avx512"
