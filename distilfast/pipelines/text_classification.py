"""``text-classification``: labels and their scores for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import count, one_of
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan, softmax
from distilfast.pipelines.encoders import TextEncoder
from distilfast.pipelines.windows import checked_rule, merged
from distilfast.tokenizer import Encoding, Text, checked_text
from distilfast.types import Task


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) in float64, of exponentials that do not overflow."""
    x = logits.astype(np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "none": lambda logits: logits,
}
_PAIR = '{"text": …, "text_pair": …}'


class TextClassificationPipeline(Pipeline):
    """``pipe(inputs, top_k=…, function_to_apply=None, truncation=None, max_length=None, errors="raise")``.

    An input is a string or ``{"text": …, "text_pair": …}``. Without ``top_k`` each input gives its best
    ``{"label", "score"}`` (one string alone gives a list of one); with a number that many, best first; with None all.
    ``function_to_apply``: "sigmoid", "softmax" or "none"; None takes what the config's ``problem_type`` and number of
    labels imply: nothing for a regression, sigmoid for several labels at once or for a single one, else softmax.

    ``truncation``: True or "longest_first", "only_first", "only_second"; texts are cut to ``max_length`` tokens, at
    most to the positions that the model has. ``max_length`` alone cuts too. ``add_special_tokens=False`` leaves out
    [CLS] and [SEP]; ``padding`` changes no answer. See ``Pipeline`` for iterators, ``batch_size`` and ``errors``.

    ``window`` or ``stride`` read the whole of a long text instead, in windows of ``window`` tokens (by default what the
    model takes), two neighbours having ``stride`` tokens in common (0). ``over_windows``: a text's score for a label is
    the "mean" of its windows' scores, each weighing the tokens of its window, or the "max"imum, which suits labels that
    a single passage decides and does not add up to 1.
    """

    task: ClassVar[str] = "text-classification"
    engine_task: ClassVar[Task] = "text-classification"
    _elsewhere = Pipeline._elsewhere | {"return_all_scores": "top_k=None gives all scores"}

    def _answer_to_one(self, given: Any, answer: Any, options: dict[str, Any]) -> Any:
        """As the reference does: one string gives a list, unless the call itself says ``top_k``."""
        alone = isinstance(given, str) and "top_k" not in options and not isinstance(answer, InputError)
        return [answer] if alone else answer

    def _plan(
        self,
        *,
        top_k: Any = "",  # "" means "not given"; None means all labels, as in the reference
        function_to_apply: str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        window: int | None = None,
        stride: int | None = None,
        over_windows: str = "mean",
    ) -> Plan:
        best_only = isinstance(top_k, str) and not top_k
        most = None if best_only or top_k is None else count("top_k", top_k, least=0)
        function = _FUNCTIONS[self._function(function_to_apply)]
        rule = checked_rule(over_windows)
        options = self._encoding_options(
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=add_special_tokens,
            padding=padding,
            window=window,
            stride=stride,
        )

        def compute(_: Sequence[Encoding], batch: PackedBatch) -> Iterable[np.ndarray]:
            return function(self.engine.logits(batch))

        def combine(_: Text, windows: Sequence[Encoding], scores: Sequence[np.ndarray]) -> Any:
            labels = self._labels(merged(scores, windows, rule), 1 if best_only else most)
            return labels[0] if best_only else labels

        return Plan(TextEncoder(self.tokenizer, options), compute, combine)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, (str, dict))

    def _listed(self, inputs: Any) -> Iterable[Any]:
        if isinstance(inputs, tuple):  # two texts or a pair?
            raise InputError(f"The input is a tuple; pass texts as a list, and a pair of texts as {_PAIR}.")
        return super()._listed(inputs)

    def _item(self, i: int, given: Any, plan: Plan) -> Text:
        if isinstance(given, str):
            return checked_text(i, given)
        if isinstance(given, dict) and isinstance(given.get("text"), str) and set(given) <= {"text", "text_pair"}:
            pair = given.get("text_pair")
            return checked_text(i, given["text"] if pair is None else (given["text"], pair))
        raise InputError(f"Input {i} is neither a string nor {_PAIR}.")

    def _labels(self, scores: np.ndarray, most: int | None) -> list[dict[str, Any]]:
        """The best labels, best first; None for all."""
        names = self.engine.config.id2label
        order = np.argsort(-scores, kind="stable")[:most]
        return [{"label": names[int(i)], "score": float(scores[i])} for i in order]

    def _function(self, name: Any) -> str:
        config = self.engine.config
        if name is not None:
            return one_of("function_to_apply", name.lower() if isinstance(name, str) else name, _FUNCTIONS)
        if config.problem_type == "regression":
            return "none"
        several_at_once = config.problem_type == "multi_label_classification"
        return "sigmoid" if several_at_once or config.num_labels == 1 else "softmax"
