"""What this machine has: backends, ISAs, threads, and what would be chosen."""

from __future__ import annotations

import platform
from typing import Any

from distilfast import __version__, backends
from distilfast.backends import cpu
from distilfast.config import cache_directory, environment_threads


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


def processor() -> str:
    """The processor's name as the system reports it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
