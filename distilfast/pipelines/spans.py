"""The best spans of a window, by the product of the probabilities of their first and their last token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distilfast.pipelines.base import highest

_MASKED = -10000.0


class Spans(NamedTuple):
    """[N] each: scores, highest first, and the first and last token of every span.

    ``null``: the score of the [CLS] token, of there being no answer. ``all_of_them``: the window has no other span.
    """

    scores: np.ndarray
    firsts: np.ndarray
    lasts: np.ndarray
    null: float
    all_of_them: bool


def best_spans(
    logits: np.ndarray, mask: np.ndarray, context: range, most: int, longest: int, *, numpy_ties: bool = False
) -> Spans:
    """The ``most`` highest spans of 1 to ``longest`` tokens inside ``context``, but for those whose score is zero.

    ``logits`` [L, 2] of a start and an end at each token, ``mask`` bool [L]: the tokens that take part in the softmax.
    Of equal spans those that begin and then end first, or with ``numpy_ties`` those of ``_of_all_pairs``.
    """
    starts, ends = (_probabilities(column, mask) for column in logits.T)
    null = float(starts[0] * ends[0])
    outside = np.ones(len(mask), bool)
    outside[context.start : context.stop] = False
    starts[outside] = ends[outside] = 0.0
    choose = _of_all_pairs if numpy_ties else _of_near_pairs
    scores, firsts, lasts = choose(starts, ends, most, longest)
    kept = scores > 0
    return Spans(scores[kept], firsts[kept], lasts[kept], null, int(kept.sum()) < most)


def _probabilities(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """In the type of the logits and in the reference's order of steps, which decides what is equal."""
    masked = np.where(mask, logits, _MASKED)
    exponentials = np.exp(masked - masked.max())
    probabilities: np.ndarray = exponentials / exponentials.sum()
    return probabilities


def _of_near_pairs(
    starts: np.ndarray, ends: np.ndarray, most: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, first and last tokens: from the products [L, D] of each start with the next D ≤ ``longest`` ends."""
    width = min(longest, len(ends))
    padded = np.append(ends, np.zeros(width - 1, ends.dtype))
    products = (starts[:, None] * np.lib.stride_tricks.sliding_window_view(padded, width)).ravel()
    places = highest(products, most)
    firsts, further = np.divmod(places, width)
    return products[places], firsts, firsts + further


def _of_all_pairs(
    starts: np.ndarray, ends: np.ndarray, most: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same from all pairs [L, L], by the reference's calls of numpy.

    Which of equal spans these take is not defined, and differs between processors.
    """
    products = np.tril(np.triu(np.outer(starts, ends)), longest - 1).ravel()
    if most == 1:
        places = np.array([products.argmax()])
    elif len(products) < most:
        places = np.argsort(-products)
    else:
        places = np.argpartition(-products, most)[:most]
        places = places[np.argsort(-products[places])]
    firsts, lasts = np.divmod(places, len(ends))
    return products[places], firsts, lasts
