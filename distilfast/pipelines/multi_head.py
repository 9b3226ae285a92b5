"""Several tasks in one pass: checkpoints that share their encoder, each with its own head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from distilfast.backends.shared import SharedEncoder
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.pipelines.base import SHARED, Pipeline, Plan
from distilfast.pipelines.feature_extraction import FeatureExtractionPipeline
from distilfast.pipelines.fill_mask import FillMaskPipeline
from distilfast.pipelines.text_classification import TextClassificationPipeline
from distilfast.pipelines.token_classification import TokenClassificationPipeline
from distilfast.tokenizer import Encoding
from distilfast.types import Precision

_OF_TEXTS: dict[str, type[Pipeline]] = {
    each.task: each
    for each in (
        TextClassificationPipeline,
        TokenClassificationPipeline,
        FeatureExtractionPipeline,
        FillMaskPipeline,
    )
}
"""The tasks whose input is a single text."""

_CUT: dict[str, dict[str, Any]] = {
    "text-classification": {"truncation": True},
    "token-classification": {},  # cuts by itself
    "feature-extraction": {"truncation": True},
    "fill-mask": {"tokenizer_kwargs": {"truncation": True}},
}
"""Options with which a task cuts what is too long."""

_ENCODING = {
    "truncation",
    "max_length",
    "window",
    "stride",
    "add_special_tokens",
    "tokenize_kwargs",
    "tokenizer_kwargs",
}
"""Options that say how texts become tokens."""

Heads = Mapping[str, str | Path] | Sequence[str | Path]


class MultiHeadPipeline(Pipeline):
    """``pipe(texts, <head>={…}, batch_size=64, errors="raise")``: the answers of several heads from one encoder.

    A text gives a dict of each head's answer, by the head's name; a list of texts gives a list of these. An answer is
    what the head's own pipeline gives for one text of a list. Options of a head are a dict under its name:
    ``pipe(texts, intent={"top_k": 3}, entities={"aggregation_strategy": "simple"})``. Texts that are too long are cut.
    Options that say otherwise, ``max_length`` or ``stride``, have to be given to every head, since all read the same
    tokens. See ``Pipeline`` for iterators, ``batch_size``, ``errors`` and ``return_truncation``.

    Made by ``from_pretrained``. Pickles and copies load the checkpoints again.
    """

    task: ClassVar[str] = "multi-head"
    _how_to_cut = "truncation to every head"
    _how_to_read_all = "a stride for every head reads all of it, in windows, and "

    def __init__(self, heads: Heads, pipelines: dict[str, Pipeline], encoder: SharedEncoder, **made_with: Any) -> None:
        """From the pipelines of engines that share ``encoder``; ``made_with``: what ``from_pretrained`` was given."""
        self.pipelines = pipelines
        self._heads, self._encoder, self._made_with = heads, encoder, made_with
        super().__init__(next(iter(pipelines.values())).engine)

    @classmethod
    def from_pretrained(
        cls, heads: Heads, *, precision: Precision = "fp32", threads: int | None = None
    ) -> MultiHeadPipeline:
        """Load checkpoints of text-classification, token-classification, feature-extraction or fill-mask.

        ``heads``: a map from names to directories or hub ids, or a list of them, which are named by their last part.
        The encoder is loaded once and runs on the CPU. Raises WeightsError where the encoders differ, InputError for
        tokenisers that differ, other tasks and names that are no identifiers, and the errors of
        ``Engine.from_pretrained``.
        """
        models = _named(heads)
        encoder, engines = Engine.with_heads(list(models.values()), precision=precision, threads=threads)
        tokenizer = engines[0].tokenizer
        pipelines = {}
        for name, engine in zip(models, engines, strict=True):
            if engine.task not in _OF_TEXTS:
                raise InputError(f"Head {name} is for {engine.task}; heads are for {', '.join(_OF_TEXTS)}.")
            if not engine.tokenizer.is_same_as(tokenizer):
                raise InputError(f"Heads {next(iter(models))} and {name} have different tokenisers.")
            engine.share_tokenizer(tokenizer)
            pipelines[name] = _OF_TEXTS[engine.task](engine)
        return cls(heads, pipelines, encoder, precision=precision, threads=threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """See the class."""
        return _loaded_again, (self._heads, self._made_with)

    def _plan(self, **options: dict[str, Any]) -> Plan:
        plans = {name: self._plan_of(name, options.get(name, {})) for name in self.pipelines}
        first, plan = next(iter(plans.items()))
        for name, other in plans.items():
            if other.encode != plan.encode:
                raise InputError(f"Heads {first} and {name} cut texts in different ways: give both the same options.")

        def compute(windows: Sequence[Encoding], batch: PackedBatch) -> Iterable[Any]:
            with self._encoder.encoded(batch):
                results = [list(each.compute(windows, batch)) for each in plans.values()]
            return zip(*results, strict=True)

        def combine(item: Any, windows: Sequence[Encoding], results: Sequence[Any]) -> dict[str, Any]:
            of_heads = zip(*results, strict=True)
            return {
                name: each.combine(item, windows, own)
                for (name, each), own in zip(plans.items(), of_heads, strict=True)
            }

        return Plan(plan.encode, compute, combine)

    def _plan_of(self, name: str, options: Any) -> Plan:
        if not isinstance(options, dict):
            raise InputError(f"{name} is of type {type(options).__name__}; a dict of its head's options is needed.")
        if shared := [each for each in SHARED if each in options]:
            raise InputError(f"{shared[0]} is an option of all heads, not of {name}.")
        pipe = self.pipelines[name]
        return pipe._checked_plan(**(options if _ENCODING & set(options) else _CUT[pipe.task] | options))

    def _check_names(self, options: Iterable[str]) -> None:
        for name in options:
            if name not in self.pipelines and name not in SHARED:
                known = ", ".join((*self.pipelines, *SHARED))
                raise InputError(f"{name} is neither a head nor an option of all of them; there are {known}.")

    def _checked_windows(self, i: int, windows: list[Encoding] | InputError) -> list[Encoding]:
        checked = super()._checked_windows(i, windows)
        for pipe in self.pipelines.values():
            pipe._checked_windows(i, checked)
        return checked

    def _cost(self, encoding: Encoding) -> int:
        return max(pipe._cost(encoding) for pipe in self.pipelines.values())


def _named(heads: Heads) -> dict[str, str | Path]:
    """Raises InputError for names that cannot be keywords."""
    if isinstance(heads, (str, Path)) or not isinstance(heads, (Mapping, Sequence)) or not heads:
        raise InputError("heads must be a map from names to checkpoints, or a list of checkpoints, at least one.")
    if isinstance(heads, Mapping):
        models = dict(heads)
    else:
        models = {Path(model).name: model for model in heads}
        if len(models) < len(heads):
            raise InputError("Two heads have one name; give heads as a map from names to checkpoints.")
    for name in models:
        if not isinstance(name, str) or not name or name in SHARED:
            raise InputError(f"{name!r} cannot be the name of a head; give heads as a map from names to checkpoints.")
    return models


def _loaded_again(heads: Heads, made_with: dict[str, Any]) -> MultiHeadPipeline:
    return MultiHeadPipeline.from_pretrained(heads, **made_with)
