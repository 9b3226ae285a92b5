"""Every error a caller can meet, one class per kind, each message one sentence."""

from __future__ import annotations


class DistilfastError(Exception):
    """Base of all errors raised on purpose by distilfast."""


class InputError(DistilfastError, ValueError):
    """The caller's ids, masks, texts or arguments cannot be used."""


class ConfigError(DistilfastError, ValueError):
    """The checkpoint's config.json or tokenizer files cannot be used."""


class WeightsError(DistilfastError, ValueError):
    """The checkpoint's tensors cannot be used."""


class BackendError(DistilfastError, RuntimeError):
    """A backend, ISA or precision was asked for and cannot be had."""
