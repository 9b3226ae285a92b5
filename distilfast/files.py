"""A checkpoint's files, which somebody else wrote: regular ones only, JSON of bounded size, keys of the right type."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from distilfast.errors import ConfigError, DistilfastError

MOST_JSON_BYTES = 256 << 20
"""Ten times the largest tokenizer.json of a multilingual model."""
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def open_regular(path: Path, error: type[DistilfastError] = ConfigError) -> BufferedReader:
    """``path``, open for reading; raises FileNotFoundError, or ``error`` for what is no readable regular file.

    Opening a pipe would wait for its writer, and reading a device may never end. A git-LFS pointer is refused too.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be opened: {getattr(reason, 'strerror', None) or reason}.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise error(f"{path} is not a regular file.")
    file = open(number, "rb")  # noqa: SIM115 - the caller closes it
    if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
        file.close()
        raise error(f"{path} is a git-LFS pointer and not the file itself; `git lfs pull` fetches it.")
    return file


def read_object(path: Path, error: type[DistilfastError] = ConfigError) -> dict[str, Any] | None:
    """The JSON object in ``path``, None where there is no such file; raises ``error``."""
    try:
        return read_json(path, dict, error)
    except FileNotFoundError:
        return None


def read_json(path: Path, kind: type, error: type[DistilfastError] = ConfigError) -> Any:
    """The JSON object (``dict``) or array (``list``) in ``path``; raises FileNotFoundError, or ``error``."""
    try:
        with open_regular(path, error) as file:
            # No more than is there: read() reserves what it is asked for.
            text = file.read(min(os.fstat(file.fileno()).st_size, MOST_JSON_BYTES) + 1)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}.") from None
    if len(text) > MOST_JSON_BYTES:
        raise error(f"{path} is larger than {MOST_JSON_BYTES >> 20} MiB.")
    return parsed(text, str(path), error, kind)


def parsed(text: bytes, name: str, error: type[DistilfastError], kind: type = dict) -> Any:
    """The JSON object, or array, that ``text`` is; raises ``error``, which calls it ``name``."""
    try:
        value = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise error(f"{name} is not readable JSON: it is nested too deeply.") from None
    except ValueError as reason:
        raise error(f"{name} is not readable JSON: {reason}.") from None
    if not isinstance(value, kind):
        raise error(f"{name} is not a JSON {'object' if kind is dict else 'array'}.")
    return value


REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """What a key of a JSON object may hold: ``needed`` in words, and ``accepts`` as a test.

    ``default`` stands for an absent key, and for null where ``accepts`` refuses it and ``optional`` is set.
    """

    needed: str
    accepts: Callable[[Any], bool]
    default: Any = REQUIRED
    optional: bool = False


def integer(least: int, most: int = 2**31 - 1, default: Any = REQUIRED, optional: bool = False) -> Key:
    """An integer from ``least`` to ``most``; true and false are none."""
    needed = "a positive integer" if least == 1 else f"an integer of at least {least}"
    needed += "" if most == 2**31 - 1 else f", at most {most:,},"
    return Key(needed, lambda value: type(value) is int and least <= value <= most, default, optional)


def boolean(default: bool | None, null: bool = False) -> Key:
    """True or false, with ``null`` null too."""
    needed = "true, false or null" if null else "true or false"
    return Key(needed, lambda value: isinstance(value, bool) or (null and value is None), default, optional=not null)


def string(default: str | None = None) -> Key:
    """A string; null counts as absent."""
    return Key("a string", lambda value: isinstance(value, str), default, optional=True)


def checked(raw: Mapping[str, Any], keys: Mapping[str, Key], name: str) -> dict[str, Any]:
    """The value of each of ``keys``; raises ConfigError, which names all absent keys or the first bad value."""
    if missing := sorted(name for name, key in keys.items() if key.default is REQUIRED and name not in raw):
        raise ConfigError(f"{name} lacks {', '.join(missing)}.")
    found = {}
    for at, key in keys.items():
        value = raw.get(at, key.default)
        if at not in raw or (value is None and key.optional and not key.accepts(None)):
            value = key.default
        elif not key.accepts(value):
            raise ConfigError(f"{name} says {at} = {_shown(value)}; {key.needed} is needed.")
        found[at] = value
    return found


def _shown(value: Any) -> str:
    """At most some eighty characters of it, in one line."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else shown[:77] + "…"
