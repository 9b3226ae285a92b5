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


class OverloadError(DistilfastError, RuntimeError):
    """A request is refused, at once: it could not be answered in time, or too much work waits."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        """``retry_after``: seconds after which it might be accepted."""
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(OverloadError):
    """A request is refused, because what would answer it has not begun yet or is ending."""


class DeadlineError(DistilfastError, TimeoutError):
    """A request was accepted, and its deadline passed before it could be answered."""
