"""``fill-mask``: the most likely words at each [MASK]."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import count
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan, highest, softmax
from distilfast.pipelines.encoders import TextEncoder
from distilfast.pipelines.windows import most_context
from distilfast.tokenizer import Encoding
from distilfast.types import Task

_TOKENS_PER_MASK = 8
"""What a mask takes of a group: the logits of 512 masks, 60 MB with 30,000 words, are in memory at a time."""

Ranking = list[tuple[int, float]]
"""Ids of words and their scores, best first."""

Rankings = dict[int, Ranking]
"""By the places of the masks in a window."""

_ROWS = 32
"""Masks whose float64 scores are in memory at a time."""


class FillMaskPipeline(Pipeline):
    """``pipe(texts, top_k=5, targets=None, tokenizer_kwargs=None, batch_size=64, errors="raise")``.

    For a text with one mask a list of ``{"score", "token", "token_str", "sequence"}``, best first; with several masks
    a list of such lists, one for each, and the ``sequence`` keeps the special tokens. A list of texts gives a list of
    these, but a list of one text gives its answer alone, as the reference does. ``targets`` limits the answers to
    these words; scores remain those among the whole vocabulary. The vocabulary is scored at the masks only.

    ``tokenizer_kwargs`` takes ``truncation``, ``max_length``, ``add_special_tokens`` and ``padding``, as
    text-classification does. ``window`` or ``stride`` read the whole of a long text instead, in windows of ``window``
    tokens (by default what the model takes), two neighbours having ``stride`` tokens in common (0); a mask is filled
    in the window in which it has the most context, farthest from the nearer end. See ``Pipeline`` for iterators,
    ``batch_size`` and ``errors``.
    """

    task: ClassVar[str] = "fill-mask"
    engine_task: ClassVar[Task] = "fill-mask"
    _elsewhere = Pipeline._elsewhere | dict.fromkeys(("truncation", "max_length"), "tokenizer_kwargs takes it")
    _how_to_cut = 'tokenizer_kwargs={"truncation": True}'

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """As the reference does: a list of one text is answered like the text."""
        answers = super().__call__(inputs, **options)
        return answers[0] if isinstance(inputs, list) and len(inputs) == 1 else answers

    def _plan(
        self,
        *,
        top_k: int | None = None,
        targets: str | Sequence[str] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> Plan:
        if self.tokenizer.mask_id is None:
            raise InputError("The tokeniser has no mask token, which fill-mask needs.")
        most = 5 if top_k is None else count("top_k", top_k, least=0)
        choices = None if targets is None else self._target_ids(targets)

        def compute(group: Sequence[Encoding], batch: PackedBatch) -> Iterator[Rankings]:
            rows = np.flatnonzero(batch.input_ids == self.tokenizer.mask_id).astype(np.int32)
            if not len(rows):  # none of these windows has a mask
                return iter([{}] * len(group))
            rankings = _rankings(self.engine.logits(batch, rows=rows), most, choices)
            return ({place: next(rankings) for place in self._masks(encoding.ids)} for encoding in group)

        def combine(_: str, windows: Sequence[Encoding], rankings: Sequence[Rankings]) -> Any:
            if len(windows) == 1:
                return self._words(windows[0].ids, list(rankings[0].values()))
            places = most_context(windows, stride or 0)
            ids = [windows[each.window].ids[each.token] for each in places]
            at_masks = (places[place] for place in self._masks(ids))
            return self._words(ids, [rankings[each.window][each.token] for each in at_masks])

        nested = self._nested_options("tokenizer_kwargs", tokenizer_kwargs)
        options = self._encoding_options(**nested, window=window, stride=stride)
        return Plan(TextEncoder(self.tokenizer, options), compute, combine, is_kept=choices is None)

    def _checked_windows(self, i: int, windows: list[Encoding] | InputError) -> list[Encoding]:
        checked = super()._checked_windows(i, windows)
        if not any(self.tokenizer.mask_id in window.ids for window in checked):
            raise InputError(f"Text {i} has no {self.tokenizer.id_to_token(self.tokenizer.mask_id or 0)} to fill.")
        return checked

    def _cost(self, encoding: Encoding) -> int:
        return max(len(encoding.ids), _TOKENS_PER_MASK * encoding.ids.count(self.tokenizer.mask_id or 0))

    def _masks(self, ids: list[int]) -> list[int]:
        """The places of the masks."""
        mask = self.tokenizer.mask_id
        return [place for place, token in enumerate(ids) if token == mask]

    def _words(self, ids: list[int], rankings: Sequence[Ranking]) -> list[Any]:
        """The answer for one text, from one of ``rankings`` for each of its masks."""
        masks = self._masks(ids)
        answers = [
            [self._word(ids, place, token, score, len(masks) == 1) for token, score in ranking]
            for place, ranking in zip(masks, rankings, strict=True)
        ]
        return answers[0] if len(answers) == 1 else answers

    def _word(self, ids: list[int], place: int, token: int, score: float, only_mask: bool) -> dict[str, Any]:
        filled, padding = [*ids[:place], token, *ids[place + 1 :]], self.tokenizer.pad_id
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            # Other masks are special tokens too, and have to stay in the text.
            "sequence": self.tokenizer.decode([t for t in filled if t != padding], only_mask),
        }

    def _target_ids(self, targets: str | Sequence[str]) -> np.ndarray:
        """Ids of the words; of a word outside the vocabulary that of its first piece, with a warning."""
        found = []
        if not isinstance(targets, Iterable) or isinstance(targets, (dict, bytes)):
            raise InputError(f"targets is of type {type(targets).__name__}; a word or a list of words is needed.")
        for target in [targets] if isinstance(targets, str) else targets:
            if not isinstance(target, str):
                raise InputError(f"targets has {target!r}; strings are needed.")
            token = self.tokenizer.vocab.get(target)
            if token is None:
                pieces = self.tokenizer.encode(target, add_special_tokens=False).ids
                if not pieces:
                    warnings.warn(f"The target {target!r} holds no token and is ignored.", stacklevel=7)
                    continue
                token = pieces[0]
                stands_for = self.tokenizer.id_to_token(token)
                warnings.warn(
                    f"The target {target!r} is not in the vocabulary; {stands_for!r} is scored instead.", stacklevel=7
                )
            found.append(token)
        if not found:
            raise InputError("targets holds no word of the vocabulary.")
        return np.unique(found)


def _rankings(logits: np.ndarray, most: int, choices: np.ndarray | None) -> Iterator[Ranking]:
    """For each row of ``logits`` [masks, vocabulary] the ids and scores of the best ``most`` words, or ``choices``."""
    for begin in range(0, len(logits), _ROWS):
        for row in softmax(logits[begin : begin + _ROWS]):
            scores = row if choices is None else row[choices]
            best = highest(scores, most)
            ids = best if choices is None else choices[best]
            yield [(int(token), float(row[token])) for token in ids]
