"""What tests ask of the simulated device beside the module's functions: see the end of tests/cuda_host/api.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType


@dataclass
class Accesses:
    """Sectors of global memory or passes over the banks of shared memory, and the fewest for the same bytes.

    By kernel, kind ("global loads", "shared stores" and the like) and place in the source ("attention.cuh:243").
    """

    by_place: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)

    def by_kernel(self) -> dict[tuple[str, str], tuple[int, int]]:
        """The sums over all places."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for (kernel, kind, _), (moved, needed) in self.by_place.items():
            before = sums.get((kernel, kind), (0, 0))
            sums[kernel, kind] = before[0] + moved, before[1] + needed
        return sums


class SimulatedDevice:
    """The simulated device that ``module`` runs on."""

    def __init__(self, module: ModuleType) -> None:
        library = ctypes.CDLL(module.__file__)
        size, address, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
        self._allocate = _function(library.simulated_allocate, address, size)
        self._write = _function(library.simulated_write, None, address, address, size)
        self.free = _function(library.simulated_free, None, address)
        self._stream = _function(library.simulated_stream, size, ctypes.c_int, ctypes.c_bool)
        self._destroy_stream = _function(library.simulated_destroy_stream, None, size)
        self._copy = _function(library.simulated_copy, ctypes.c_int, address, address, size, size)
        self._synchronize = _function(library.simulated_synchronize, ctypes.c_int)
        self.seed = _function(library.simulated_seed, None, ctypes.c_uint)
        self._live_objects = _function(library.simulated_live_objects, text)
        self._complaints = _function(library.simulated_complaints, text)
        self._count_accesses = _function(library.simulated_count_accesses, None, ctypes.c_bool)
        self._accesses = _function(library.simulated_accesses, text)

    def holding(self, content: bytes) -> int:
        """The address of an allocation of these bytes, at least one."""
        at = self._allocate(max(len(content), 1))
        self._write(at, content, len(content))
        return at

    def copy_of(self, address: int, size: int, stream: int) -> int:
        """The address of a copy, for which work is enqueued on ``stream``."""
        at = self._allocate(size)
        assert self._copy(at, address, size, stream) == 0
        return at

    def content(self, address: int, size: int) -> bytes:
        """What lies there when all work has run."""
        assert self._synchronize() == 0
        return ctypes.string_at(address, size)

    @contextmanager
    def stream(self, device: int = 0, *, captured: bool = False) -> Iterator[int]:
        """The handle of another library's stream."""
        handle = self._stream(device, captured)
        try:
            yield handle
        finally:
            self._destroy_stream(handle)

    @contextmanager
    def counted_accesses(self) -> Iterator[Accesses]:
        """What kernels access in this context."""
        found = Accesses()
        self._count_accesses(True)
        try:
            yield found
        finally:
            self._count_accesses(False)
            for line in self._accesses().decode().splitlines():
                kernel, kind, place, moved, needed = line.split("\t")
                found.by_place[kernel, kind, place] = int(moved), int(needed)

    def live_objects(self) -> str:
        """What is created and not destroyed, as in "2 streams, 1 events"."""
        return self._live_objects().decode()

    def complaints(self) -> str:
        """Errors of calls whose status nobody reads, since the last time."""
        return self._complaints().decode()


def _function(function, result, *arguments):
    function.restype, function.argtypes = result, arguments
    return function
