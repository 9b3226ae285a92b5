"""What this machine has: backends, ISAs, threads, and what would be chosen."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distilfast import __version__, backends
from distilfast.backends import cpu
from distilfast.config import cache_directory, environment_threads

_UNLIMITED = 1 << 62
"""What version 1 of cgroups says where there is no limit is about twice as much."""


def info() -> dict[str, Any]:
    """Versions, the processor, each backend or why it is missing, the ISA chosen and why, the threads, the cache."""
    facts: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "processor": processor(),
        "backends": {name: backends.module(name).unavailable() or "available" for name in backends.names()},
    }
    if cpu.unavailable() is None:
        isa, why = cpu.chosen_isa()
        facts |= {
            "isas": {name: "supported" if there else "not supported" for name, there in cpu.isas().items()},
            "isa": isa,
            "isa_why": why,
            "threads": environment_threads() or cpu.available_cores(),
            "cache": _cache(),
        }
    return facts


def _cache() -> str:
    try:
        return str(cache_directory() or "off")
    except OSError as error:
        return f"none: {error}"


def gpus() -> list[str]:
    """The device files of NVIDIA's and AMD's GPUs."""
    return sorted([str(path) for pattern in ("nvidia[0-9]*", "kfd") for path in Path("/dev").glob(pattern)])


def memory(facts: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Bytes that the machine has, and that can be had without swapping; None where the system does not say."""
    try:
        lines = facts.read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    total, available = (kilobytes.get(name) for name in ("MemTotal", "MemAvailable"))
    return total and total << 10, available and available << 10


def memory_limit(controls: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that the control group of this process, a container say, may have; None where there is no limit.

    The least of the group's and its parents': ``memory.max`` in version 2, ``memory.limit_in_bytes`` in version 1. In a
    container the mounted files can be those of the group itself, whatever its path on the host.
    """
    limits = []
    for directory, file in _memory_groups(controls, membership):
        try:
            text = (directory / file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)


def _memory_groups(controls: Path, membership: Path) -> Iterator[tuple[Path, str]]:
    """Directories of the group and its parents, and the file in each that has the limit."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = (controls / "memory", "memory.limit_in_bytes") if controllers else (controls, "memory.max")
        at = top / group.lstrip("/")
        while at != top:
            yield at, file
            at = at.parent
        yield top, file


def processor() -> str:
    """The processor's name as the system reports it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
