"""Device memory: every access is checked.

Global memory is one arena in which buffers lie apart, each readable or writable. Shared memory also finds races: a
byte that one thread has written may be read or overwritten by another only after a barrier, and a byte that one thread
has read may be overwritten by another only after a barrier. The destination of an asynchronous copy belongs to the copy
from its issue to its wait, and counts as written by its thread at the wait.
"""

from __future__ import annotations

import numpy as np

BASE = 1 << 32
_READABLE, _WRITABLE = 1, 2
_GAP = 256

WARP = 32


class Fault(Exception):
    """An access that is wrong, or whose result is undefined."""


def _spans(addresses: np.ndarray, size: int) -> np.ndarray:
    return addresses[:, None] + np.arange(size)


class Global:
    """Buffers, each at a multiple of 256 bytes. Their ends are not: a byte past one is out of bounds."""

    def __init__(self) -> None:
        self.data = np.zeros(_GAP, np.uint8)
        self.access = np.zeros(_GAP, np.uint8)

    def add(self, array: np.ndarray, writable: bool = False) -> int:
        """The address of a copy of ``array``."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offset, end = len(self.data), -(-(len(self.data) + content.size + _GAP) // _GAP) * _GAP
        self.data = np.concatenate([self.data, np.zeros(end - offset, np.uint8)])
        self.access = np.concatenate([self.access, np.zeros(end - offset, np.uint8)])
        self.data[offset : offset + content.size] = content
        self.access[offset : offset + content.size] = _READABLE | (_WRITABLE if writable else 0)
        return BASE + offset

    def result(self, address: int, like: np.ndarray) -> np.ndarray:
        """What a buffer holds, in the shape and type of ``like``."""
        return self.data[address - BASE :][: like.nbytes].copy().view(like.dtype).reshape(like.shape)

    def read(self, addresses: np.ndarray, size: int, align: int) -> np.ndarray:
        return self.data[self._checked(addresses, size, align, _READABLE)]

    def write(self, addresses: np.ndarray, values: np.ndarray, align: int) -> None:
        self.data[self._checked(addresses, values.shape[1], align, _WRITABLE)] = values

    def _checked(self, addresses: np.ndarray, size: int, align: int, needed: int) -> np.ndarray:
        if (addresses % align).any():
            raise Fault(f"global address not a multiple of {align}")
        offsets = addresses.astype(np.int64) - BASE
        if (offsets < 0).any() or (offsets + size > len(self.data)).any():
            raise Fault("global address out of bounds")
        spans = _spans(offsets, size)
        if not (self.access[spans] & needed).all():
            raise Fault("global address out of bounds, or not writable")
        return spans


class Shared:
    """The shared memory of one block; ``epoch`` counts its barriers. Races are kept for each granule of 2 bytes."""

    GRANULE = 2
    NOBODY, SEVERAL, FIRST_WARP = -1, -2, -10
    """Instead of a thread; ``FIRST_WARP - w``: threads of warp w, which have met since at ``bar.warp.sync``."""

    def __init__(self, size: int) -> None:
        self.epoch = 0
        self.data = np.zeros(size, np.uint8)
        granules = -(-size // self.GRANULE)
        self.writer, self.reader, self.copier = (np.full(granules, self.NOBODY, np.int16) for _ in range(3))
        self.written, self.read_in = np.full(granules, -1), np.full(granules, -1)

    def read(self, addresses: np.ndarray, threads: np.ndarray, size: int, align: int) -> np.ndarray:
        spans, who = self._spans(addresses, size, align), threads[:, None]
        if (self.writer[spans] == self.NOBODY).any():
            raise Fault("shared memory read before anything is written there")
        if ((self.written[spans] == self.epoch) & self._is_anothers(self.writer[spans], who)).any():
            raise Fault("race: shared memory read that another thread has written since the last barrier")
        before = np.where(self.read_in[spans] == self.epoch, self.reader[spans], self.NOBODY)
        self.read_in[spans] = self.epoch
        self.reader[spans] = who
        shared = (self.reader[spans] != who) | ((before != self.NOBODY) & (before != who))
        self.reader[spans[shared]] = self.SEVERAL
        return self.data[_spans(addresses, size)]

    def write(self, addresses: np.ndarray, threads: np.ndarray, values: np.ndarray, align: int) -> None:
        size = values.shape[1]
        self._own(self._spans(addresses, size, align), threads[:, None])
        self.data[_spans(addresses, size)] = values
        if (self.data[_spans(addresses, size)] != values).any():
            raise Fault("race: two threads write different values to the same shared memory in one instruction")

    def begin_copy(self, addresses: np.ndarray, threads: np.ndarray, size: int) -> None:
        """From now on nobody may touch these bytes, until ``end_copy``."""
        spans = self._spans(addresses, size, size)
        self._own(spans, threads[:, None])
        self.copier[spans] = threads[:, None]

    def end_copy(self, addresses: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        self.copier[_spans(addresses // self.GRANULE, values.shape[1] // self.GRANULE)] = self.NOBODY
        self.write(addresses, threads, values, values.shape[1])

    def sync_warps(self, warps: np.ndarray) -> None:
        """Each of these warps has met: its lanes see what any of them did before."""
        for holder in (self.writer, self.reader):
            inside = (holder >= 0) & np.isin(holder // WARP, warps)
            holder[inside] = self.FIRST_WARP - holder[inside] // WARP

    def _is_anothers(self, holder: np.ndarray, who: np.ndarray) -> np.ndarray:
        return (holder != who) & (holder != self.FIRST_WARP - who // WARP)

    def _own(self, spans: np.ndarray, who: np.ndarray) -> None:
        if ((self.written[spans] == self.epoch) & self._is_anothers(self.writer[spans], who)).any():
            raise Fault("race: shared memory written that another thread has written since the last barrier")
        if ((self.read_in[spans] == self.epoch) & self._is_anothers(self.reader[spans], who)).any():
            raise Fault("race: shared memory written that another thread has read since the last barrier")
        self.writer[spans] = who
        self.writer[spans[self.writer[spans] != who]] = self.SEVERAL  # equal values, in one instruction
        self.written[spans] = self.epoch

    def _spans(self, addresses: np.ndarray, size: int, align: int) -> np.ndarray:
        if (addresses % align).any() or size % self.GRANULE:
            raise Fault(f"shared address not a multiple of {align}")
        if (addresses < 0).any() or (addresses + size > len(self.data)).any():
            raise Fault("shared address out of bounds")
        spans = _spans(addresses // self.GRANULE, size // self.GRANULE)
        if (self.copier[spans] != self.NOBODY).any():
            raise Fault("shared memory touched whose asynchronous copy has not been waited for")
        return spans
