"""How many threads there are to be used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COUNT = "import os; os.sched_setaffinity(0, {cpus}); from distilfast.backends import cpu; print(cpu.available_cores())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_is_counted():
    allowed = sorted(os.sched_getaffinity(0))
    for cpus in ({allowed[-1]}, set(allowed)):
        command = [sys.executable, "-c", COUNT.format(cpus=cpus)]
        counted = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        # A quota of the container may allow less than the mask, and never more.
        assert 1 <= counted <= len(cpus)


# Slices of all threads, in ns, by sched_getattr(2): 48 bytes, the slice at 24.
SLICES = """
import ctypes, os, sys
from distilfast import Engine
Engine.from_pretrained(sys.argv[1], threads=2)([[1, 2]])
attributes = ctypes.create_string_buffer(48)
for thread in os.listdir("/proc/self/task"):
    assert ctypes.CDLL(None).syscall(315, int(thread), attributes, 48, 0) == 0
    print(int(thread) == os.getpid(), int.from_bytes(attributes.raw[24:32], "little"))
"""


def _kernel() -> tuple[int, ...]:
    numbers = platform.release().split("-")[0].split(".")[:2] if sys.platform == "linux" else ["0"]
    return tuple(int(number) for number in numbers)


@pytest.mark.skipif(_kernel() < (6, 12), reason="slices are granted by Linux from 6.12 on")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is that of x86-64")
def test_workers_have_short_slices_and_the_caller_its_own(tiny_checkpoint: Callable[..., Path]):
    command = [sys.executable, "-c", SLICES, str(tiny_checkpoint("distilbert", "feature-extraction"))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    slices = {
        own: [int(each) for who, each in zip(lines[::2], lines[1::2], strict=True) if who == own] for own in lines[::2]
    }
    assert min(slices["False"]) == 100_000
    assert slices["True"][0] > 100_000
