"""How long a forward takes, predicted from the lengths of its sequences.

A forward without padding costs what its tokens cost, and attention on top, which grows with the square of a sequence's
length. So the model is a piecewise linear function of the number of tokens, through batches that were measured, and a
coefficient of the sum of squared lengths. Both are measured on the engine itself before it serves; while it serves, a
factor follows what the machine does (other processes, a lower clock), and a second one the worst of twenty batches.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distilfast.errors import InputError

SHORT = 16
"""Tokens of a short sequence: the lengths at which the piecewise linear part is measured."""

TOKENS = (8, 16, 32, 64, 128)
"""The batches, in tokens, through which the piecewise linear part goes."""

LONG = 256
"""Tokens of the sequence by which attention is measured."""

ROUNDS = 3

_SMOOTHING = 0.05
_TAIL_STEP = 0.01
_TAIL = 0.95
_SLOWEST = 8.0  # a batch that took longer than this many times its prediction was interrupted, and says no more


@dataclass(frozen=True)
class Curve:
    """Seconds of a forward: ``seconds[i]`` for ``tokens[i]`` in short sequences, ``attention`` for each squared token.

    Between two points the function is linear. Below the first it is constant: a forward of few tokens reads the weights
    all the same. Beyond the last it goes on as between the last two.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    attention: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError for points that are not increasing."""
        if len(self.tokens) < 2 or len(self.tokens) != len(self.seconds):
            raise InputError("A cost curve needs two points or more, a number of tokens and of seconds each.")
        if any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)) or min(self.seconds) <= 0:
            raise InputError("The points of a cost curve are increasing numbers of tokens and positive seconds.")

    def __call__(self, lengths: Iterable[int]) -> float:
        """Seconds of a forward of sequences with these ``lengths``."""
        total = squares = 0
        for length in lengths:
            total += length
            squares += max(0, length - SHORT) * length
        return self.of(total, squares)

    def of(self, tokens: int, squares: int) -> float:
        """The same from sums: ``tokens`` of all sequences, ``squares`` of length · (length − 16) where it is longer."""
        x, y = self.tokens, self.seconds
        if tokens <= x[0]:
            return y[0] + self.attention * squares
        i = min(bisect_right(x, tokens), len(x) - 1)
        slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
        return y[i - 1] + slope * (tokens - x[i - 1]) + self.attention * squares

    def quantum(self, waste: float = 0.1) -> int:
        """The least measured number of tokens at which a token costs at most 1 + ``waste`` times the cheapest."""
        each = [y / x for x, y in zip(self.tokens, self.seconds, strict=True)]
        return next(x for x, cost in zip(self.tokens, each, strict=True) if cost <= (1 + waste) * min(each))

    @property
    def throughput(self) -> float:
        """Seconds for each token in batches of ``quantum`` tokens."""
        tokens = self.quantum()
        return self.of(tokens, 0) / tokens


def measure(
    forward: Callable[[Sequence[int]], object],
    *,
    longest: int = LONG,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Curve:
    """The curve of ``forward``, which runs sequences of the given lengths, at most ``longest`` tokens each.

    Each batch is run ``rounds`` times, one after the other so that a slow minute meets all of them, and the median
    counts.
    """
    points = [tokens for tokens in TOKENS if tokens <= max(longest, TOKENS[1])]
    batches = [[tokens] if tokens < SHORT else [SHORT] * (tokens // SHORT) for tokens in points]
    longest = min(longest, LONG)
    batches.append([longest])
    taken: list[list[float]] = [[] for _ in batches]
    forward(batches[0])  # the first forward of an engine allocates
    for _ in range(rounds):
        for batch, seconds in zip(batches, taken, strict=True):
            begin = clock()
            forward(batch)
            seconds.append(clock() - begin)
    medians = [sorted(each)[rounds // 2] for each in taken]
    rising = _rising(medians[:-1])
    curve = Curve(tuple(points), tuple(rising))
    squares = longest * max(0, longest - SHORT)
    attention = max(0.0, medians[-1] - curve.of(longest, 0)) / squares if squares else 0.0
    return Curve(curve.tokens, curve.seconds, attention)


def _rising(seconds: Sequence[float]) -> list[float]:
    """More tokens never cost less: a smaller value after a larger one is noise."""
    found: list[float] = []
    for each in seconds:
        found.append(max(each, found[-1]) if found else each)
    return found


class Cost:
    """A curve that follows the machine: what batches took, over what the curve said.

    ``factor`` is a moving average of that ratio. ``margin`` times it is exceeded by one batch of twenty, and moves by
    small steps in both directions, so that one interrupted batch changes little.
    """

    def __init__(self, curve: Curve) -> None:
        """Of a measured ``curve``."""
        self.curve = curve
        self.quantum = curve.quantum()
        self.factor = 1.0
        self.margin = 1.1

    def __call__(self, lengths: Iterable[int]) -> float:
        """Seconds that a forward of these lengths is expected to take."""
        return self.factor * self.curve(lengths)

    def share(self, lengths: Iterable[int]) -> float:
        """Seconds that these sequences add to a batch of many."""
        tokens = squares = 0
        for length in lengths:
            tokens += length
            squares += max(0, length - SHORT) * length
        return self.factor * (tokens * self.curve.throughput + self.curve.attention * squares)

    def doubt(self) -> None:
        """An idle processor refused a request, from which nothing can be learned: the next ones cost a little less.

        So a curve from a slower hour than this refuses some requests and not all of them for good.
        """
        self.factor *= 1 - _SMOOTHING

    def learn(self, lengths: Iterable[int], seconds: float) -> None:
        """A forward of these lengths took ``seconds``."""
        ratio = min(seconds / self.curve(lengths), _SLOWEST)
        above = ratio > self.factor * self.margin
        self.margin = max(1.0, self.margin + _TAIL_STEP * (_TAIL if above else _TAIL - 1))
        self.factor += _SMOOTHING * (ratio - self.factor)
