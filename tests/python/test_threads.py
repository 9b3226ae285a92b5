"""How many cores are available, and the time slices of the workers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COUNT = "import os; os.sched_setaffinity(0, {cpus}); from distilfast.backends import cpu; print(cpu.available_cores())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_is_counted():
    allowed = sorted(os.sched_getaffinity(0))
    for cpus in ({allowed[-1]}, set(allowed)):
        command = [sys.executable, "-c", COUNT.format(cpus=cpus)]
        counted = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        # A quota of the container can allow less than the mask, and never more.
        assert 1 <= counted <= len(cpus)


@pytest.fixture
def control_group() -> Iterator[Callable[[int], Path]]:
    """``control_group(quota)``: cgroup.procs of a group whose processes get ``quota`` µs of CPU time in each 100 ms."""
    root = Path("/sys/fs/cgroup")
    first = (root / "cpu" / "cpu.cfs_quota_us").exists()  # version 1 of the control groups
    group = root / ("cpu" if first else "") / f"distilfast-test-{os.getpid()}"

    def limit(quota: int) -> Path:
        if first:
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} 100000")
        return group / "cgroup.procs"

    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            limit(100_000)
        except OSError as error:
            pytest.skip(f"control groups have no quota here: {error}")
        yield limit
    finally:
        group.rmdir()


@pytest.mark.parametrize(("quota", "most"), [(50_000, 1), (120_000, 1), (199_000, 1), (200_000, 2), (399_000, 3)])
def test_a_real_quota_is_counted(control_group: Callable[[int], Path], quota: int, most: int):
    """Rounded down: no more threads than can run all the time."""
    joins = "open(sys.argv[1], 'w').write('0')"
    code = f"import sys; {joins}; from distilfast.backends import cpu; print(cpu.available_cores())"
    command = [sys.executable, "-c", code, str(control_group(quota))]
    counted = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert counted == min(most, len(os.sched_getaffinity(0)))


# Prints whether some worker has a short slice, and the caller's slice, by sched_getattr(2): 48 bytes, the slice in ns
# at 24. A worker sets it when it starts, which can be some forwards after the first.
SLICES = """
import ctypes, os, struct, sys
from distilfast import Engine

short = struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 100_000, 0, 0)
if ctypes.CDLL(None).syscall(314, 0, short, 0) != 0:
    print("forbidden", 0)
    sys.exit()
usual = struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 0, 0, 0)
ctypes.CDLL(None).syscall(314, 0, usual, 0)

attributes = ctypes.create_string_buffer(48)

def slice_of(thread):
    assert ctypes.CDLL(None).syscall(315, thread, attributes, 48, 0) == 0
    return int.from_bytes(attributes.raw[24:32], "little")

engine = Engine.from_pretrained(sys.argv[1], threads=2)
for _ in range(10_000):
    engine([[1, 2]])
    slices = {int(thread): slice_of(int(thread)) for thread in os.listdir("/proc/self/task")}
    own = slices.pop(os.getpid())
    if 100_000 in slices.values():
        break
print(100_000 in slices.values(), own)
"""


def _kernel() -> tuple[int, ...]:
    numbers = platform.release().split("-")[0].split(".")[:2] if sys.platform == "linux" else ["0"]
    return tuple(int(number) for number in numbers)


@pytest.mark.skipif(_kernel() < (6, 12), reason="slices are granted by Linux from 6.12 on")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is that of x86-64")
def test_workers_have_short_slices_and_the_caller_keeps_its_own(tiny_checkpoint: Callable[..., Path]):
    command = [sys.executable, "-c", SLICES, str(tiny_checkpoint("distilbert", "feature-extraction"))]
    found, own = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if found == "forbidden":
        pytest.skip("sched_setattr is forbidden here")
    assert found == "True"
    assert int(own) > 100_000
