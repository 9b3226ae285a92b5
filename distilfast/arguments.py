"""Checks of a caller's arguments: the value, or InputError with one sentence that names the argument."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from distilfast.errors import InputError


def integer(name: str, value: Any, needed: str = "an integer") -> int:
    """An integer, numpy's included, as an int; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; {needed} is needed.")
    return int(value)


def count(name: str, value: Any, least: int = 1) -> int:
    """An integer of at least ``least``."""
    needed = "a positive integer" if least == 1 else f"an integer of {least} or more"
    if integer(name, value, needed) < least:
        raise InputError(f"{name} is {value!r}; {needed} is needed.")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False, numpy's included, as a bool."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name} is {value!r}; True or False is needed.")
    return bool(value)


def listed(name: Any, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not known: those that are, and the one that is spelled most alike."""
    names = list(known)
    sentence = f"there are {', '.join(names)}"
    if not isinstance(name, str) or len(name) > 2 * max(map(len, names), default=0):  # quadratic in a long one
        return sentence
    from difflib import get_close_matches  # imported here: most calls are right

    near = get_close_matches(name, names, 1, cutoff=0.7)
    return f"{sentence}; the nearest is {near[0]}" if near else sentence


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} {value!r} is not known; {listed(value, choices)}.")
    return value
