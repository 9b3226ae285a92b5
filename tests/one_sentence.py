"""How every error of the project must read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from distilfast import DistilfastError


def raises_one_sentence(error: type[DistilfastError], what: str, call: Callable[[], Any]) -> None:
    """``call`` raises exactly ``error``, and its message is one sentence that contains ``what``."""
    with pytest.raises(DistilfastError) as caught:
        call()
    message = str(caught.value)
    assert caught.type is error, repr(caught.value)
    assert what in message
    assert "\n" not in message and message.endswith(".") and not message.endswith("..")
    assert not re.search(r"[.!?] [A-Z]", message), "more than one sentence"
