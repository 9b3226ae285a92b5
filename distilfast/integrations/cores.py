"""Cores that the processes of a machine share out: each takes some, and nobody else has them until it ends.

A core is taken by locking a file that is called after it. The system undoes a lock when its process ends, however that
happens, so nothing is left behind by a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distilfast.errors import BackendError

_TOPOLOGY = Path("/sys/devices/system/cpu")
_held: list[int] = []
"""The open files whose locks this process has."""


def take(count: int, folder: Path | None = None) -> list[int]:
    """Bind every thread of this process, and those that they start, to ``count`` cores that no other has taken.

    Hardware threads of one core are taken together. ``folder``: where the files are, by default one of the user's own
    below the system's temporary folder. Raises BackendError where fewer are free, or the system binds no threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise BackendError("This system cannot bind a process to cores.")
    folder = folder or Path(tempfile.gettempdir()) / f"distilfast-cores-{os.getuid()}"
    allowed = sorted(os.sched_getaffinity(0), key=_place)
    with _alone(folder):
        found: dict[int, int] = {}
        for core in allowed:
            if len(found) < count and (file := _locked(folder / str(core))) is not None:
                found[core] = file
        if len(found) < count:
            for file in found.values():
                os.close(file)
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process takes cores meanwhile, so that two do not have half of what they need each."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BackendError(f"{folder} belongs to another user.")
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _locked(path: Path) -> int | None:
    """The open file at ``path`` with its lock, None where another has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
