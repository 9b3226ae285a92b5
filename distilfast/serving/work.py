"""What the batcher keeps of a request beside what the scheduler does, and what it tells of requests."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from distilfast.pipelines.base import Prepared


@dataclass(frozen=True)
class Timing:
    """Seconds of a request's stages, in order, and its tokens.

    ``tokenise``: from the text to ids. ``queue``: until its first forward. ``forward``: until its last one has ended.
    ``post``: from there to the answer.
    """

    model: str
    tokens: int
    tokenise: float
    queue: float
    forward: float
    post: float


STAGES = ("tokenise", "queue", "forward", "post")
"""Of a Timing, in order."""


@dataclass(frozen=True)
class Forward:
    """One batch that has been run, in ``seconds``."""

    model: str
    sequences: int
    tokens: int
    seconds: float


@dataclass
class Counts:
    """What has become of the requests, and how many batches, sequences and tokens have been run."""

    submitted: int = 0
    answered: int = 0
    refused: int = 0
    late: int = 0
    cancelled: int = 0
    failed: int = 0
    shared: int = 0  # answered by an identical request in flight
    batches: int = 0
    sequences: int = 0
    tokens: int = 0


@dataclass(eq=False)
class Work:
    """What a request of the scheduler is for: its windows, and who waits for the answer until when.

    ``key``: equal for requests with the same answer; None where none is shared. ``text_bytes``: what the key's text
    takes.
    """

    prepared: Prepared
    futures: dict[Future[Any], float]
    results: list[Any]
    key: Hashable = None
    text_bytes: int = 0
    tokenise: float = 0.0  # seconds
    context: Context | None = None  # of its caller, for who observes it
    begun: float = 0.0
    ended: float = 0.0
