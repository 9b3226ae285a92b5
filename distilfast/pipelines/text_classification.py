"""``text-classification``: labels and their scores for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, check_top_k, listed, softmax
from distilfast.tokenizer import Text
from distilfast.types import Task

_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda logits: 1.0 / (1.0 + np.exp(-logits.astype(np.float64))),
    "softmax": softmax,
    "none": lambda logits: logits,
}


class TextClassificationPipeline(Pipeline):
    """``pipe(texts, top_k=…, function_to_apply=None, truncation=False, max_length=None)``.

    A text is a string or ``{"text": …, "text_pair": …}``. Without ``top_k`` each text gives its best
    ``{"label", "score"}`` (one string alone gives a list of one); with a number that many, best first; with None all.
    ``function_to_apply``: "sigmoid", "softmax" or "none"; None takes what the config's ``problem_type`` and number of
    labels imply: nothing for a regression, sigmoid for several labels at once or for a single one, else softmax.
    """

    task: ClassVar[Task] = "text-classification"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """As the reference does: one string gives a list, unless the call itself says ``top_k``."""
        answer = super().__call__(inputs, **options)
        return [answer] if isinstance(inputs, str) and "top_k" not in options else answer

    def _answer(
        self,
        inputs: Any,
        top_k: int | str | None = "",  # "" means "not given"; None means all labels, as in the reference
        function_to_apply: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> Any:
        if top_k is not None and top_k != "":
            top_k = check_top_k(top_k)
        function = _FUNCTIONS[self._function(function_to_apply)]
        one = isinstance(inputs, (str, dict))
        texts = [_text(i, text) for i, text in enumerate([inputs] if one else listed(inputs))]
        answers: list[Any] = []
        for _, batch in self._batches(self._encode(texts, truncation, max_length)):
            answers += [self._labels(scores) for scores in function(self.engine.logits(batch))]
        if top_k == "":
            answers = [labels[0] for labels in answers]
        elif top_k is not None:
            answers = [labels[: int(top_k)] for labels in answers]
        return answers[0] if one else answers

    def _labels(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """All labels, best first."""
        names = self.engine.config.id2label
        order = np.argsort(-scores, kind="stable")
        return [{"label": names[int(i)], "score": float(scores[i])} for i in order]

    def _function(self, name: str | None) -> str:
        config = self.engine.config
        if name is not None:
            if name.lower() not in _FUNCTIONS:
                raise InputError(f"function_to_apply {name!r} is not known; there are {', '.join(_FUNCTIONS)}.")
            return name.lower()
        if config.problem_type == "regression":
            return "none"
        several_at_once = config.problem_type == "multi_label_classification"
        return "sigmoid" if several_at_once or config.num_labels == 1 else "softmax"


def _text(i: int, text: Any) -> Text:
    if isinstance(text, str):
        return text
    if isinstance(text, dict) and isinstance(text.get("text"), str) and set(text) <= {"text", "text_pair"}:
        return text["text"] if text.get("text_pair") is None else (text["text"], text["text_pair"])
    raise InputError(f'Input {i} is neither a string nor {{"text": …, "text_pair": …}}.')
