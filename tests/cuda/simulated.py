"""What tests ask of the simulated device beside the module's functions: see the end of tests/cuda_host/api.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


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
        self.seed = _function(library.simulated_seed, None, ctypes.c_uint)
        self._live_objects = _function(library.simulated_live_objects, text)
        self._complaints = _function(library.simulated_complaints, text)

    def holding(self, content: bytes) -> int:
        """The address of an allocation of these bytes, at least one."""
        at = self._allocate(max(len(content), 1))
        self._write(at, content, len(content))
        return at

    @contextmanager
    def stream(self, device: int = 0, *, captured: bool = False) -> Iterator[int]:
        """The handle of another library's stream."""
        handle = self._stream(device, captured)
        try:
            yield handle
        finally:
            self._destroy_stream(handle)

    def live_objects(self) -> str:
        """What is created and not destroyed, as in "2 streams, 1 events"."""
        return self._live_objects().decode()

    def complaints(self) -> str:
        """Errors of calls whose status nobody reads, since the last time."""
        return self._complaints().decode()


def _function(function, result, *arguments):
    function.restype, function.argtypes = result, arguments
    return function
