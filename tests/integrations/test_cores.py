"""Cores that processes share out: none has two, and those of a process that was killed are free again."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import pytest

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("this system binds no process to cores", allow_module_level=True)

CODE = """
import os, sys, threading
from distilfast.errors import BackendError
from distilfast.integrations import cores
waits = threading.Event()
started = threading.Thread(target=waits.wait, daemon=True)
started.start()
try:
    print(*cores.take(int(sys.argv[1]), sys.argv[2]), flush=True)
except BackendError as error:
    print(error, flush=True)
masks = {tuple(sorted(os.sched_getaffinity(int(each)))) for each in os.listdir("/proc/self/task")}
print(masks, flush=True)
sys.stdin.read()
"""


def taker(count: int, prefix: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, str(count), prefix]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_has_its_own_until_it_is_killed() -> None:
    prefix = f"test-{uuid.uuid4().hex}-"
    allowed = len(os.sched_getaffinity(0))
    takers = [taker(1, prefix) for _ in range(allowed)]
    try:
        got = [line(each) for each in takers]
        assert len(set(got)) == allowed
        assert [line(each) for each in takers] == [f"{{({core},)}}" for core in got]  # threads that ran before, too
        with taker(1, prefix) as late:
            sentence = f"1 of this machine's {allowed} cores are needed, and other processes leave 0 free."
            assert line(late) == sentence
            assert line(late) == str({tuple(sorted(os.sched_getaffinity(0)))})
            late.communicate("")
        takers[0].kill()
        takers[0].wait()
        with taker(1, prefix) as heir:
            assert line(heir) == got[0]
            heir.communicate("")
    finally:
        for each in takers:
            each.kill()
            each.communicate()
