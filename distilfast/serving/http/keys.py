"""API keys: a file with one a line, read again when it changes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from distilfast.errors import ConfigError

LEAST = 16
"""Characters of a key; a shorter one could be guessed."""


class Keys:
    """The keys of a file: ``KEY`` or ``NAME KEY`` a line, ``#`` before a comment.

    Their SHA-256 is kept, not the keys. A file that cannot be read any more, or holds a line that is no key, changes
    nothing: the keys read before stay.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; raises ConfigError."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._digests: dict[str, bytes] = {}
        self.problem: str | None = None
        """Why the file that is there now is not used, as a sentence."""
        self._read()
        if self.problem:
            raise ConfigError(self.problem)

    def owner(self, given: str) -> str | None:
        """The name of the key ``given``, or None where it is none. Every key is compared, whichever matches."""
        self._read()
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _read(self) -> None:
        try:
            status = os.stat(self._path)
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._digests = _parsed(self._path)
            self.problem = None
        except OSError as error:
            self.problem = f"{self._path} cannot be read: {error.strerror}."
        except (ValueError, ConfigError) as error:
            self.problem = str(error) if isinstance(error, ConfigError) else f"{self._path} is not UTF-8."


def _parsed(path: Path) -> dict[str, bytes]:
    digests = {}
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or len(words[-1]) < LEAST:
            raise ConfigError(f"Line {i} of {path} is not KEY or NAME KEY with a key of {LEAST} characters or more.")
        name = words[0] if len(words) == 2 else f"key {i}"
        if name in digests:
            raise ConfigError(f"{path} has two keys called {name!r}.")
        digests[name] = hashlib.sha256(words[-1].encode()).digest()
    if not digests:
        raise ConfigError(f"{path} holds no key.")
    return digests
