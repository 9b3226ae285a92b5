"""``zero-shot-classification``: labels chosen at the call, each read as the hypothesis of a premise.

The model is a sequence classifier that was trained on natural language inference: Yin et al., arXiv 1909.00161.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import flag
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan, Prepared, softmax
from distilfast.pipelines.encoders import Encoder, EncodingOptions
from distilfast.pipelines.windows import checked_rule, merged
from distilfast.tokenizer import Encoding, Tokenizer
from distilfast.types import Task


@dataclass(frozen=True)
class HypothesesEncoder(Encoder):
    """A pair of each text with each hypothesis; both are tokenised once, and only the text is cut or in windows."""

    tokenizer: Tokenizer
    hypotheses: Sequence[str]
    options: EncodingOptions

    def __call__(self, items: Sequence[str]) -> list[list[Encoding]]:
        """As many windows as hypotheses, or several times as many."""
        options = self.options
        return self.tokenizer.encode_product(
            items,
            self.hypotheses,
            truncation=options.truncation,
            max_length=options.max_length,
            stride=options.stride,
        )

    def dropped(self, item: str, windows: Sequence[Encoding]) -> int:
        """The most tokens that any of the pairs lost."""
        if self.options.truncation is None or max(len(window.ids) for window in windows) < (
            self.options.max_length or 0
        ):
            return 0
        whole = self.tokenizer.encode_product([item], self.hypotheses, truncation=None, max_length=None)[0]
        return max(len(a.ids) - len(b.ids) for a, b in zip(whole, windows, strict=True))


class ZeroShotClassificationPipeline(Pipeline):
    """``pipe(texts, candidate_labels, hypothesis_template="This example is {}.", multi_label=False)``.

    A text gives ``{"sequence", "labels", "scores"}``, labels best first, and a list of texts a list of these.
    ``candidate_labels``: a list, or a string of labels between commas. The score of a label is the softmax of its
    entailment logit among those of all labels; with ``multi_label``, or one label, among its own entailment and
    contradiction. The label of the model that begins with "entail" is that of entailment; where none does, the last.

    A text too long for the model is cut; hypotheses are not. ``window`` or ``stride`` read the whole of it instead, in
    windows of ``window`` tokens, the hypothesis among them (by default what the model takes), two neighbours having
    ``stride`` tokens in common (0). ``over_windows``: the score of a label is the "mean" of its windows' scores, each
    weighing the tokens of its window, or the "max"imum. See ``Pipeline`` for iterators, ``batch_size``, ``errors`` and
    ``return_truncation``.
    """

    task: ClassVar[str] = "zero-shot-classification"
    engine_task: ClassVar[Task] = "text-classification"
    _how_to_cut = "shorter labels"

    def __init__(self, engine: Engine, defaults: dict[str, Any] | None = None) -> None:
        """See ``Pipeline``; warns where no label of the model is that of entailment."""
        names = list(engine.config.id2label.values())
        if len(names) < 2:
            raise InputError("The model has one label; zero-shot-classification needs entailment and contradiction.")
        self._entailment = next((i for i, name in enumerate(names) if name.lower().startswith("entail")), -1)
        if self._entailment == -1:
            warnings.warn(
                f"No label of the model begins with 'entail'; the last, {names[-1]!r}, is taken for entailment.",
                stacklevel=3,
            )
        super().__init__(engine, defaults)

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """One text, a list or an iterator of them; see the class."""
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        self._check_labels(options)
        return super().__call__(inputs, **options)

    def prepare(self, given: Any, **options: Any) -> Prepared:
        """See ``Pipeline``; the labels are needed here too."""
        self._check_labels(options)
        return super().prepare(given, **options)

    def _check_labels(self, options: dict[str, Any]) -> None:
        if (self._defaults | options).get("candidate_labels") is None:
            raise InputError("candidate_labels is missing; pass the labels to choose from.")

    def _plan(
        self,
        *,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
        window: int | None = None,
        stride: int | None = None,
        over_windows: str = "mean",
    ) -> Plan:
        labels = ["a label"] if candidate_labels is None else _labels(candidate_labels)
        hypotheses = [_hypothesis(hypothesis_template, label) for label in labels]
        alone = flag("multi_label", multi_label) or len(labels) == 1
        rule = checked_rule(over_windows)
        in_windows = window is not None or stride is not None
        options = self._encoding_options(truncation=None if in_windows else "only_first", window=window, stride=stride)

        def compute(_: Sequence[Encoding], batch: PackedBatch) -> Iterable[np.ndarray]:
            return self.engine.logits(batch)

        def combine(text: str, pairs: Sequence[Encoding], logits: Sequence[np.ndarray]) -> dict[str, Any]:
            windows = range(0, len(pairs), len(labels))
            each = [self._scores(np.stack(logits[begin : begin + len(labels)]), alone) for begin in windows]
            scores = merged(each, [pairs[begin] for begin in windows], rule)
            order = np.argsort(scores, kind="stable")[::-1]
            return {"sequence": text, "labels": [labels[int(i)] for i in order], "scores": scores[order].tolist()}

        return Plan(HypothesesEncoder(self.tokenizer, hypotheses, options), compute, combine, sequences=len(labels))

    def _scores(self, logits: np.ndarray, alone: bool) -> np.ndarray:
        """[labels] from the logits of the pairs, [labels, classes]."""
        if not alone:
            return softmax(logits[:, self._entailment])
        contradiction = -1 if self._entailment == 0 else 0
        return softmax(logits[:, [contradiction, self._entailment]])[:, 1]


def _labels(given: Any) -> list[str]:
    found = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
    if isinstance(found, (dict, bytes)) or not isinstance(found, Iterable):
        raise InputError(f"candidate_labels is of type {type(given).__name__}; a list of labels is needed.")
    labels = [label for label in found if label or not isinstance(given, str)]
    for label in labels:
        if not isinstance(label, str):
            raise InputError(f"candidate_labels has {label!r}; strings are needed.")
    if not labels:
        raise InputError("candidate_labels is empty; at least one label is needed.")
    return labels


def _hypothesis(template: Any, label: str) -> str:
    if not isinstance(template, str):
        raise InputError(f"hypothesis_template is {template!r}; a string is needed.")
    try:
        hypothesis = template.format(label)
    except (ValueError, LookupError, AttributeError):
        raise InputError(f"hypothesis_template is {template!r}; one {{}} is needed, for the label.") from None
    if hypothesis == template:
        raise InputError(f"hypothesis_template is {template!r}; it has no {{}} for the label.")
    return hypothesis
