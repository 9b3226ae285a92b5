"""Locks that a forked child can use, whatever the parent's other threads were doing."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType


class ForkSafeLock:
    """A lock that no other thread holds while a process forks: the fork waits for it.

    The child has none of the other threads, so one that held the lock would never release it there, and what the lock
    protects, the state of a library say, would stay half changed.
    """

    def __init__(self) -> None:
        """Unlocked; the thread that holds it can take it again."""
        self._lock = threading.RLock()
        with _registry:
            _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


_registry = threading.RLock()  # no lock is made, and no other thread forks, during a fork
_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_held: list[ForkSafeLock] = []


def _before_fork() -> None:
    _registry.acquire()
    for lock in list(_locks):
        lock.__enter__()
        _held.append(lock)


def _after_fork() -> None:
    while _held:
        _held.pop().__exit__(None, None, None)
    _registry.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
