"""How many threads there are to be used."""

from __future__ import annotations

import os
import subprocess
import sys

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
