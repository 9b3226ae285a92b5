"""Shared memory in which each worker shows its metrics, so that whichever is asked answers for all."""

from __future__ import annotations

import mmap
import os
import struct
import zlib

SLOT = 1 << 20
"""Bytes of a worker's metrics at most; memory that is not written takes none."""

_HEADER = struct.Struct("<IIQ")  # bytes that follow, their checksum, the process that writes


class Board:
    """A slot for each worker. Made before the fork; a worker reads all slots and writes its own."""

    def __init__(self, workers: int) -> None:
        """Empty slots."""
        self.workers = workers
        self._memory = mmap.mmap(-1, workers * SLOT)

    def claim(self, number: int) -> None:
        """From now on this process writes slot ``number``, and no older one does."""
        _HEADER.pack_into(self._memory, number * SLOT, 0, 0, os.getpid())

    def write(self, number: int, data: bytes) -> bool:
        """Whether it was written: not if it is too large, or a newer process has claimed the slot."""
        begin = number * SLOT
        if _HEADER.unpack_from(self._memory, begin)[2] != os.getpid() or len(data) > SLOT - _HEADER.size:
            return False
        _HEADER.pack_into(self._memory, begin, 0, 0, os.getpid())
        self._memory[begin + _HEADER.size : begin + _HEADER.size + len(data)] = data
        _HEADER.pack_into(self._memory, begin, len(data), zlib.crc32(data), os.getpid())
        return True

    def read(self, number: int) -> bytes:
        """What was written last; nothing where it is being written just now."""
        begin = number * SLOT
        length, checksum, _ = _HEADER.unpack_from(self._memory, begin)
        data = self._memory[begin + _HEADER.size : begin + _HEADER.size + min(length, SLOT - _HEADER.size)]
        return data if zlib.crc32(data) == checksum else b""
