"""`distilfast doctor` on the machine: processor, precisions, threads, memory, GPU, and what disturbs measurements."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from distilfast import backends, machine
from distilfast.backends import cpu, measured
from distilfast.cli import processors
from distilfast.cli.matters import Matter, clause, several, text, version
from distilfast.config import environment_threads
from distilfast.errors import BackendError, InputError

_HALF = "bf16 halves the weights and computes in fp32"
_PRECISIONS = {
    "amx": "fp32 for the reference's answers; bf16x3 is within 2e-5 and faster, bf16 and int8 the fastest",
    "avx512_bf16": "fp32 for the reference's answers; bf16 is faster, int8 the fastest",
    "avx512_vnni": f"fp32 for the reference's answers; int8 by dot products, {_HALF}",
    "avx2_vnni": f"fp32 for the reference's answers; int8 by dot products, {_HALF}",
    "avx512": f"fp32 for the reference's answers; int8 has no dot product here, {_HALF}",
    "avx2": f"fp32 for the reference's answers; int8 has no dot product here, {_HALF}",
    "neon_bf16": "fp32 for the reference's answers; bf16 and int8 by matrix products",
    "neon_i8mm": f"fp32 for the reference's answers; int8 by matrix products, {_HALF}",
    "neon_dotprod": f"fp32 for the reference's answers; int8 by dot products, {_HALF}",
    "neon": f"fp32 for the reference's answers; int8 has no dot product here, {_HALF}",
    "ref": "portable C++: right and slow in each",
}
"""What to choose on an ISA: what the rows of benchmarks/results show, or else which instructions there are."""

_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_MOST_STEAL = 0.02
_BASE_WEIGHTS = 66_000_000 * 4
"""Bytes of a base model's weights in fp32; while it is loaded there are as many again, the file they come from."""


def processor() -> Matter:
    """The ISA that runs, why, and what is faster and not to be had."""
    name = machine.processor()
    if reason := cpu.unavailable():
        advice = ("install distilfast again: a wheel, or from source with gcc or clang (C++20)",)
        return Matter("broken", f"{name}: {clause(reason)}", advice, {"name": name, "isa": None})
    lacking = cpu.missing()
    runs = [isa for isa, why in lacking.items() if why is None]
    try:
        isa, why = cpu.chosen_isa()
    except BackendError as error:
        facts = {"name": name, "isa": None, "runs": runs}
        return Matter("broken", f"{name}: {clause(error)}", (f"unset DISTILFAST_ISA; {runs[0]} runs here",), facts)
    faster = [each for each in _of_this_architecture(list(lacking), isa) if lacking[each] is not None]
    found = f"{name}: {isa}, {why}" + (f"; not here: {', '.join(faster)}" if faster else "")
    return Matter.of(found, list(_advice(isa, lacking)), {"name": name, "isa": isa, "why": why, "runs": runs})


def _of_this_architecture(isas: list[str], isa: str) -> list[str]:
    """The ISAs before ``isa`` in ``isas`` that belong to the same architecture."""
    before = isas[: isas.index(isa)]
    on_arm = platform.machine().lower() in ("aarch64", "arm64")
    return [each for each in before if each.startswith("neon") == on_arm]


def _advice(isa: str, lacking: dict[str, str | None]) -> Iterator[str]:
    order = list(lacking)
    fastest = next(each for each in order if lacking[each] is None)
    if isa != fastest:
        yield f"unset DISTILFAST_ISA: {fastest} runs here and is faster"
    if "operating system" in (lacking.get("amx") or ""):
        yield "for amx: Linux 5.16 or newer, and in a container a seccomp profile that allows arch_prctl"
        return
    known = processors.known_isa(processors.facts())
    if known in order and order.index(known) < order.index(fastest):
        yield f"a processor of this model has {known}, hidden by the virtual machine: give it the host's CPU model"
    if fastest == "ref":
        yield "no fast kernels fit this processor: x86-64 with AVX2 and FMA, or 64-bit ARM, is needed"


def precision() -> Matter:
    """Which precisions there are, and which to choose on this ISA."""
    names = ", ".join(cpu.PRECISIONS)
    try:
        isa = None if cpu.unavailable() else cpu.chosen_isa()[0]
    except BackendError:
        isa = None
    facts: dict[str, Any] = {"precisions": cpu.PRECISIONS, "isa": isa}
    if isa is None:
        return Matter("absent", f"{names}: none before the processor's kernels run", facts=facts)
    use = _PRECISIONS.get(isa, "fp32 for the reference's answers")
    return Matter("good", f"{names}. {use}; what one costs: distilfast parity MODEL --precision int8", facts=facts)


def threads() -> Matter:
    """How many run, out of the cores there are."""
    cores = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    allowed = affinity if cpu.unavailable() else cpu.available_cores()
    try:
        count = environment_threads() or allowed
    except InputError as error:
        return Matter("broken", clause(error), (f"unset DISTILFAST_THREADS; {allowed} would run",))
    physical = _physical_cores()
    facts = {"threads": count, "cores": cores, "affinity": affinity, "allowed": allowed, "physical": physical}
    found = f"{count} on {several(cores, 'core')}"
    found += f", {affinity} by affinity" if affinity < cores else ", all by affinity"
    found += f", {allowed} by the CPU quota, rounded down" if allowed < affinity else ", no CPU quota"
    if "OMP_NUM_THREADS" in os.environ:
        found += f"; OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is not read"
    return Matter.of(found, list(_advice_on_threads(count, allowed, physical)), facts)


def _advice_on_threads(count: int, allowed: int, physical: int | None) -> Iterator[str]:
    if count > allowed:
        yield f"DISTILFAST_THREADS={count} is more than the {allowed} that can run: they wait for each other"
    if physical is not None and physical < min(count, allowed):
        yield f"some are SMT siblings that share {several(physical, 'core')}: compare DISTILFAST_THREADS={physical}"


def _physical_cores() -> int | None:
    """Cores that this process may run on, SMT siblings counted once; None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {text(topology.format(core)) for core in os.sched_getaffinity(0)}
    return None if None in siblings else len(siblings)


def memory() -> Matter:
    """How much there is and may be had, and whether packed weights get huge pages."""
    total, available = machine.memory()
    limit = machine.memory_limit()
    pages = _in_brackets(text(_HUGE_PAGES))
    found = f"{_gib(available)} available of {_gib(total)}, "
    found += "no limit" if limit is None else f"{_gib(limit)} allowed by the control group"
    found += f"; huge pages: {pages or 'not known'}"
    advice = []
    if pages == "never":
        advice.append(
            "weights stream faster from huge pages: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
    least = min((size for size in (available, limit) if size is not None), default=None)
    if least is not None and least < 2 * _BASE_WEIGHTS:
        advice.append("a base model may not fit in fp32 while it is loaded; int8 packs a weight into one byte")
    facts = {"total_bytes": total, "available_bytes": available, "limit_bytes": limit, "huge_pages": pages}
    return Matter.of(found, advice, facts)


def _in_brackets(setting: str | None) -> str | None:
    """The word in brackets: "madvise" of "always [madvise] never"."""
    return setting.partition("[")[2].partition("]")[0] or None if setting else None


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB"


def usable_backends() -> Matter:
    """What auto takes, and of the GPU backends: device, driver, built. torch is imported only where there is a GPU."""
    devices = machine.gpus()
    driver = measured.has_driver()
    built, triton = find_spec("distilfast._cuda") is not None, version("triton")
    facts: dict[str, Any] = {"devices": devices, "driver": driver, "cuda_built": built, "triton": triton}
    if devices or driver:
        reasons = {name: backends.module(name).unavailable() for name in ("cuda", "triton")}
        facts |= {name: reason or "available" for name, reason in reasons.items()}
        found = "; ".join(f"{name}: {clause(reason) if reason else 'runs'}" for name, reason in reasons.items())
    else:
        found = f"no GPU and no driver (cuda {'' if built else 'not '}built, triton {triton or 'not installed'})"
    try:
        choice = backends.choose("auto", "fp32")
    except BackendError as error:
        advice = ("unset DISTILFAST_BACKEND",) if os.environ.get("DISTILFAST_BACKEND") else ()
        return Matter("broken", f"{clause(error)}; {found}", advice, facts)
    facts |= {"auto": choice.names, "why": choice.why}
    found = f"auto takes {' and '.join(choice.names)}: {choice.why}; {found}"
    return Matter.of(found, list(_advice_on_gpu(devices, driver, built, triton)), facts)


def _advice_on_gpu(devices: list[str], driver: bool, built: bool, triton: str | None) -> Iterator[str]:
    if driver and not devices:
        yield "there is a driver and no device: in a container, docker run --gpus all"
    if not driver and any("nvidia" in device for device in devices):
        yield "NVIDIA's driver (libcuda.so.1) is missing: install it, or docker run --gpus all"
    if driver and not built:
        yield "for cuda, in a clone and where nvcc is: CMAKE_ARGS=-DCUDA=ON pip install ."
    if devices and triton is None:
        yield "for triton: pip install 'distilfast[gpu]'"


def timing() -> Matter:
    """What disturbs measurements on this machine."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    steal = _steal()
    clock = text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    governor = text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    advice = []
    if load > 0.5:
        advice.append("other processes compute here: what is measured now is slower than this machine")
    if steal is not None and steal > _MOST_STEAL:
        advice.append("the host gives time to others (steal): compare only what was measured in one run, interleaved")
    if clock in ("hpet", "acpi_pm", "jiffies", "refined-jiffies"):
        advice.append(f"clock source {clock} is slow to read: boot with clocksource=tsc")
    if governor == "powersave":
        advice.append("the frequency may stay low: set the governor performance")
    found = f"load {load:.1f}, clock source {clock or 'not known'}"
    found += "" if steal is None else f", {100 * steal:.0f} % steal"
    found += "" if governor is None else f", governor {governor}"
    return Matter.of(found, advice, {"load": load, "steal": steal, "clock_source": clock, "governor": governor})


def _steal() -> float | None:
    """The share of the processors' time since the start that the host gave to other machines."""
    times = [int(each) for each in (text("/proc/stat") or "").partition("\n")[0].split()[1:9]]
    total = sum(times)
    return times[7] / total if len(times) == 8 and total else None
