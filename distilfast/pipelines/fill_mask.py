"""``fill-mask``: the most likely words at each [MASK]."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, check_top_k, listed, softmax
from distilfast.tokenizer import Encoding
from distilfast.types import Task


class FillMaskPipeline(Pipeline):
    """``pipe(texts, top_k=5, targets=None, tokenizer_kwargs=None)``.

    For a text with one mask a list of ``{"score", "token", "token_str", "sequence"}``, best first; with several masks
    a list of such lists, one for each, and the ``sequence`` keeps the special tokens. A list of texts gives a list of
    these, but a list of one text gives its answer alone, as the reference does. ``targets`` limits the answers to
    these words; scores remain those among the whole vocabulary. ``tokenizer_kwargs`` takes ``truncation`` and
    ``max_length``. The vocabulary is scored at the masks only.
    """

    task: ClassVar[Task] = "fill-mask"

    def _answer(
        self,
        inputs: str | Sequence[str],
        top_k: int | None = None,
        targets: str | Sequence[str] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        top_k = 5 if top_k is None else check_top_k(top_k)
        texts = listed(inputs)
        choices = None if targets is None else self._target_ids([targets] if isinstance(targets, str) else targets)
        options = tokenizer_kwargs or {}
        encodings = self._encode(texts, options.get("truncation", False), options.get("max_length"))
        self._check_masks(encodings)
        answers = [
            answer for group, batch in self._batches(encodings) for answer in self._fill(group, batch, top_k, choices)
        ]
        return answers[0] if len(texts) == 1 else answers

    def _check_masks(self, encodings: Sequence[Encoding]) -> None:
        for i, encoding in enumerate(encodings):
            if self.tokenizer.mask_id not in encoding.ids:
                raise InputError(f"Text {i} has no {self.tokenizer.id_to_token(self.tokenizer.mask_id or 0)} to fill.")

    def _fill(self, group: Sequence[Encoding], batch: Any, top_k: int, choices: np.ndarray | None) -> list[Any]:
        rows = np.flatnonzero(batch.input_ids == self.tokenizer.mask_id).astype(np.int32)
        scores = softmax(self.engine.logits(batch, rows=rows))
        sequence_of = np.searchsorted(batch.cu_seqlens, rows, side="right") - 1
        return [self._words(group[b].ids, scores[sequence_of == b], top_k, choices) for b in range(len(group))]

    def _words(self, ids: list[int], scores: np.ndarray, top_k: int, choices: np.ndarray | None) -> list[Any]:
        """The answers for one text; ``scores`` [masks, vocabulary]."""
        masks = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        candidates = np.arange(scores.shape[1]) if choices is None else choices
        answers = []
        for place, row in zip(masks, scores, strict=True):
            best = candidates[np.argsort(-row[candidates], kind="stable")[:top_k]]
            answers.append([self._word(ids, place, int(token), float(row[token]), len(masks) == 1) for token in best])
        return answers[0] if len(answers) == 1 else answers

    def _word(self, ids: list[int], place: int, token: int, score: float, only_mask: bool) -> dict[str, Any]:
        filled = [*ids[:place], token, *ids[place + 1 :]]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            # Other masks are special tokens too, and have to stay in the text.
            "sequence": self.tokenizer.decode([t for t in filled if t != self.tokenizer.pad_id], only_mask),
        }

    def _target_ids(self, targets: Sequence[str]) -> np.ndarray:
        """Ids of the words; of a word outside the vocabulary that of its first piece, with a warning."""
        found = []
        for target in targets:
            token = self.tokenizer.vocab.get(target)
            if token is None:
                pieces = self.tokenizer.encode(target, add_special_tokens=False).ids
                if not pieces:
                    warnings.warn(f"The target {target!r} holds no token and is ignored.", stacklevel=4)
                    continue
                token = pieces[0]
                stands_for = self.tokenizer.id_to_token(token)
                warnings.warn(
                    f"The target {target!r} is not in the vocabulary; {stands_for!r} is scored instead.", stacklevel=4
                )
            found.append(token)
        if not found:
            raise InputError("targets holds no word of the vocabulary.")
        return np.unique(found)
