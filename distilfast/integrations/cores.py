"""Cores that the processes of a machine share out: each takes some, and nobody else has them until it ends.

A core is taken by binding a Unix socket to a name of Linux's abstract namespace, which is no file: it cannot be deleted
by whoever cleans up, and the system frees the name when the process ends, however that happens.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

from distilfast.errors import BackendError

PREFIX = "distilfast-core-"
"""Of the names; those of all users and applications in one network namespace are the same."""

_TOPOLOGY = Path("/sys/devices/system/cpu")
_WAIT_S = 10.0
_held: list[socket.socket] = []
"""The sockets whose names this process has."""


def take(count: int, prefix: str = PREFIX) -> list[int]:
    """Bind every thread of this process, and those that they start, to ``count`` cores that no other has taken.

    Hardware threads of one core are taken together. Raises BackendError where fewer are free, or it is not Linux.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise BackendError("This system cannot bind a process to cores.")
    allowed = sorted(os.sched_getaffinity(0), key=_place)
    found: dict[int, socket.socket] = {}
    with _turn(prefix):
        for core in allowed:
            if len(found) < count and (taken := _bound(f"{prefix}{core}")) is not None:
                found[core] = taken
        if len(found) < count:
            for each in found.values():
                each.close()
            needed = f"{count} of this machine's {len(allowed)} cores are needed"
            raise BackendError(f"{needed}, and other processes leave {len(found)} free.")
    _held.extend(found.values())
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), found)
        except ProcessLookupError:  # it has ended meanwhile
            continue
    return list(found)


def _place(core: int) -> tuple[int, int]:
    """Orders hardware threads by their core."""
    try:
        first = (_TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return core, core
    return int(first.replace("-", ",").split(",")[0]), core


def _turn(prefix: str) -> socket.socket:
    """A name that one process at a time has, so that two do not have half of what they need each."""
    end = time.monotonic() + _WAIT_S
    while (turn := _bound(f"{prefix}turn")) is None:
        if time.monotonic() > end:
            raise BackendError("Another process has been taking cores for 10 s.")
        time.sleep(0.01)
    return turn


def _bound(name: str) -> socket.socket | None:
    """A socket with this name, None where another process has it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(f"\0{name}")
    except OSError as error:
        made.close()
        if error.errno != errno.EADDRINUSE:
            raise BackendError(f"Cores cannot be shared out: {error.strerror}.") from None
        return None
    return made
