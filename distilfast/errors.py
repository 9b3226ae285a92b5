"""Every error that the package raises, one class for each kind; each message is one sentence."""

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
    """The requested backend, ISA or precision is not available, or cannot run the model or batch."""
