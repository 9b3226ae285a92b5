"""Packed weights on disk, so that later processes map what this one packed.

A file is named by its key, a digest of everything that its bytes depend on: the checkpoint's content, the layout of the
packed weights and the version of distilfast. It is written under a temporary name and then renamed, so a reader finds
all of it or nothing. Header and body have checksums; a file that is damaged, owned by another user or of another
version is ignored and written again. All processes map the same pages. An I/O error is not raised: the weights are
packed as if there were no cache, and ``Entry.origin`` says so.

Beside them are notes, small JSON files with a checksum of their own: what else a start would have to find out again.

Digesting a checkpoint takes longer than everything else, so digests are kept by path, size, inode, mtime and ctime. A
file that changed within the last two seconds is not kept: it could change again without a new timestamp.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import stat
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilfast import __version__
from distilfast.checkpoint import StoredFile
from distilfast.config import cache_directory

MOST_BYTES = 4 << 30
"""Limit of all files together; the least recently used file is removed first."""
MOST_DIGESTS = 64
"""How many digests of checkpoints are kept."""
MOST_NOTES = 64
"""How many notes of a kind are kept; the one written longest ago is removed first."""
SETTLED_NS = 2_000_000_000
"""How old the last change of a file must be for its digest to be remembered: the coarsest clock of a file system."""
MOST_WAIT_S = 2.0
"""How long to wait for another process that is writing, before this one writes too."""

_SUFFIX, _TEMPORARY, _DIGESTS = ".packed", ".tmp", "digests.json"
# Magic, format of this file, bytes of the body, its checksum, the key; zeros up to a page, whose last four bytes are
# the CRC of all others.
_HEADER = struct.Struct("<8sIxxxxQQ32s")
_MAGIC, _FORMAT = b"DFPACKED", 1
_PAGE = 4096
_BLOCK = 16 << 20  # bytes of a checkpoint that one thread digests at a time


Checksum = Callable[[np.ndarray], int]
"""Of all bytes of an array, 64 bits."""


class Entry:
    """One model's packed weights in the cache, whether they exist or not.

    ``packed``: uint8, read-only and mapped, or None. ``origin``: where the weights come from, as a phrase.
    """

    def __init__(self, path: Path | None, key: bytes, origin: str, checksum: Checksum) -> None:
        """``path`` None: there is no cache, and ``origin`` says why."""
        self._path, self._key, self._checksum = path, key, checksum
        self.packed = None if path is None else _read(path, key, checksum)
        self.origin = origin if self.packed is None else f"cache ({path})"

    @property
    def is_writable(self) -> bool:
        """Whether there is a cache, which ``keep`` may still fail to write."""
        return self._path is not None

    def keep(self, packed: np.ndarray) -> np.ndarray | None:
        """Write ``packed`` (uint8, flat) and map what was written; None where that fails.

        Where another process has written the file in the meantime, that file is mapped, so that all share its pages.
        """
        if self._path is None:
            return None
        try:
            with _writer_lock(self._path.parent):
                written = _read(self._path, self._key, self._checksum)
                if written is None:
                    _write(self._path, self._key, packed, self._checksum)
                    written = _read(self._path, self._key, self._checksum)
        except OSError as error:
            self.origin = f"packed, cache not writable: {_reason(error)}"
            return None
        self.origin = f"packed, written to {self._path}"
        return written


def find(files: Sequence[StoredFile], facts: Mapping[str, object], checksum: Checksum, threads: int) -> Entry:
    """The entry for ``files`` packed in the way that ``facts``, values of JSON's types, describe.

    ``checksum``: the 64-bit checksum that a body is stored with; ``threads``: how many digest a checkpoint's file.
    Raises nothing.
    """
    try:
        directory = cache_directory()
    except OSError as error:
        return Entry(None, b"", f"packed, no cache: {_reason(error)}", checksum)
    if directory is None:
        return Entry(None, b"", "packed, cache off", checksum)
    if not files:
        return Entry(None, b"", "packed, not cached: they are not from safetensors files", checksum)
    everything = {
        "version": __version__,
        "byte_order": sys.byteorder,
        "files": [_digest(directory, file, threads) for file in files],
        **facts,
    }
    key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).digest()
    return Entry(directory / f"{key.hex()[:32]}{_SUFFIX}", key, "packed", checksum)


@dataclass(frozen=True)
class State:
    """The cache: its folder (None: off, or not known), models, their bytes; ``problem``: why it is not used."""

    directory: Path | None
    models: int = 0
    size: int = 0
    problem: str | None = None


def state() -> State:
    """What the cache holds, and whether this process could write it; nothing is written. Raises nothing."""
    try:
        directory = cache_directory()
    except OSError as error:
        return State(None, problem=_reason(error))
    if directory is None:
        return State(None)
    try:
        if directory.exists():
            _check_owner(directory, directory.stat())
        sizes = [path.stat().st_size for path in directory.glob(f"*{_SUFFIX}")]
    except OSError as error:
        return State(directory, problem=_reason(error))
    there = next(path for path in (directory, *directory.parents) if path.exists())
    problem = None if os.access(there, os.W_OK | os.X_OK) and there.is_dir() else f"{there} cannot be written"
    return State(directory, len(sizes), sum(sizes), problem)


# --- notes ---


def read_note(kind: str, facts: Mapping[str, object]) -> Any:
    """What ``keep_note`` kept for equal ``facts``; None where there is nothing, or it is damaged. Raises nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = _note(kind, facts)
        if path is None:
            return None
        with _opened(path) as file:
            stored = json.loads(os.read(file, 1 << 20))
        if stored["crc"] == _note_crc(stored["note"]) and stored["facts"] == json.loads(json.dumps(facts)):
            return stored["note"]
    return None


def keep_note(kind: str, facts: Mapping[str, object], note: Any) -> str:
    """Keep ``note``, a value of JSON's types, for ``facts``; what has become of it, as a phrase. Raises nothing."""
    try:
        path = _note(kind, facts)
        if path is None:
            return "not kept, cache off"
        stored = {"crc": _note_crc(note), "facts": facts, "note": note}
        _replace(path, [json.dumps(stored).encode()])
    except OSError as error:
        return f"not kept, cache not writable: {_reason(error)}"
    with contextlib.suppress(OSError):  # another process removes them too
        for each in sorted(path.parent.glob(f"*.{kind}"), key=lambda each: each.stat().st_mtime_ns)[:-MOST_NOTES]:
            each.unlink()
    return f"kept in {path}"


def _note(kind: str, facts: Mapping[str, object]) -> Path | None:
    """Raises OSError."""
    directory = cache_directory()
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return None if directory is None else directory / f"{key[:32]}.{kind}"


def _note_crc(note: Any) -> int:
    return zlib.crc32(json.dumps(note, sort_keys=True).encode())


# --- one file ---


def _read(path: Path, key: bytes, checksum: Checksum) -> np.ndarray | None:
    """The mapped body of a complete, trusted file with this key, or None."""
    with contextlib.suppress(OSError), _opened(path) as file:
        size = os.fstat(file).st_size - _PAGE
        header = os.pread(file, _PAGE, 0)
        if size <= 0 or _crc(header[:-4]) != header[-4:]:
            return None
        magic, version, body_bytes, stored_checksum, stored_key = _HEADER.unpack_from(header)
        if (magic, version, body_bytes, stored_key) != (_MAGIC, _FORMAT, size, key):
            return None
        mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        # Huge pages for the reason given in csrc/cpu/arena.h; a system without them for files is only slower.
        with contextlib.suppress(OSError, AttributeError):
            mapped.madvise(mmap.MADV_HUGEPAGE)
        body = np.frombuffer(mapped, np.uint8, offset=_PAGE)
        if checksum(body) != stored_checksum:
            return None
        with contextlib.suppress(OSError):  # a read-only disk
            os.utime(path)  # the time of its last use, which _evict reads
        return body
    return None


def _write(path: Path, key: bytes, packed: np.ndarray, checksum: Checksum) -> None:
    """Raises OSError, and then leaves no file."""
    header = _HEADER.pack(_MAGIC, _FORMAT, packed.nbytes, checksum(packed), key).ljust(_PAGE - 4, b"\0")
    _remove_abandoned(path.parent)
    _replace(path, [header + _crc(header), packed.data])
    _evict(path)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _evict(kept: Path) -> None:
    """Remove the least recently used files until the limit is kept; never ``kept``, whatever its size."""
    files = []
    for path in kept.parent.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process removed it
            status = path.stat()
            files.append((path != kept, -status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, _, size, path in sorted(files):
        total += size
        if total > MOST_BYTES and path != kept:
            with contextlib.suppress(OSError):
                path.unlink()


# --- the digest of a checkpoint's file ---


def _digest(directory: Path, file: StoredFile, threads: int) -> str:
    """SHA-256, in hexadecimal, of the digests of the file's blocks; a kept one where the file is unchanged."""
    kept = _kept_digests(directory)
    path, status = os.path.abspath(file.path), file.status
    identity = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    found = kept.get(path)
    if isinstance(found, list) and found[:-1] == identity and isinstance(found[-1], str):
        return found[-1]
    now = time.time_ns()
    digest = _digest_of(file.data, threads)
    if max(status.st_mtime_ns, status.st_ctime_ns) < now - SETTLED_NS:
        kept.pop(path, None)  # the newest last
        latest = dict([*kept.items(), (path, [*identity, digest])][-MOST_DIGESTS:])
        with contextlib.suppress(OSError):
            _replace(directory / _DIGESTS, [json.dumps(latest).encode()])
    return digest


def _digest_of(data: mmap.mmap, threads: int) -> str:
    from concurrent.futures import ThreadPoolExecutor  # imported here: most starts do not need it

    with memoryview(data) as view, ThreadPoolExecutor(threads) as pool:  # hashlib releases the GIL
        blocks = pool.map(lambda at: hashlib.sha256(view[at : at + _BLOCK]).digest(), range(0, len(view), _BLOCK))
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def _kept_digests(directory: Path) -> dict[str, Any]:
    try:
        with _opened(directory / _DIGESTS) as file:
            found = json.loads(os.read(file, 1 << 20))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- trust, and writing in one piece ---


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a file that only this user or root can have written; raises OSError for any other."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a file")
        _check_owner(path, status)
        yield file
    finally:
        os.close(file)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise OSError(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{path} can be written by other users")


def _prepare(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(directory, directory.stat())


@contextlib.contextmanager
def _writer_lock(directory: Path) -> Iterator[None]:
    """One writer at a time; a process that has waited MOST_WAIT_S writes without the lock. Raises OSError."""
    _prepare(directory)
    lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + MOST_WAIT_S
        while not _locked(lock) and time.monotonic() < end:
            time.sleep(0.005)
        yield
    finally:
        os.close(lock)


def _locked(file: int) -> bool:
    """Whether the lock was acquired; on a file system without locks always true."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _replace(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write ``pieces`` to ``path`` atomically: readers see the old file or the new one. Raises OSError."""
    _prepare(path.parent)
    number, name = _temporary(path.parent)
    try:
        with open(number, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            # No fsync, which takes seconds on a busy disk: the checksums detect what a power failure leaves behind.
            os.rename(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _temporary(directory: Path) -> tuple[int, str]:
    """A new file, locked while this process has it open, so that others see that its writer is alive."""
    import tempfile  # imported here, as above

    while True:
        number, name = tempfile.mkstemp(suffix=_TEMPORARY, prefix=".", dir=directory)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            if os.fstat(number).st_nlink:
                return number, name
        except OSError:  # a file system without locks
            os.unlink(name)
            os.close(number)
            raise
        os.close(number)  # another process removed it as abandoned before it was locked


def _remove_abandoned(directory: Path) -> None:
    """Remove temporary files that no process has locked: their writers have died."""
    for path in directory.glob(f".*{_TEMPORARY}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).rstrip(".")
