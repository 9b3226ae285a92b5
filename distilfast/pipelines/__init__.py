"""Tasks end to end: ``pipeline(task, model)`` answers texts with the dicts of ``transformers.pipeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

from distilfast.arguments import listed
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline
from distilfast.pipelines.feature_extraction import FeatureExtractionPipeline
from distilfast.pipelines.fill_mask import FillMaskPipeline
from distilfast.pipelines.multiple_choice import MultipleChoicePipeline
from distilfast.pipelines.question_answering import QuestionAnsweringPipeline
from distilfast.pipelines.sentence_similarity import SentenceSimilarityPipeline
from distilfast.pipelines.text_classification import TextClassificationPipeline
from distilfast.pipelines.token_classification import TokenClassificationPipeline
from distilfast.pipelines.zero_shot_classification import ZeroShotClassificationPipeline
from distilfast.types import BackendName, Precision

PIPELINES: dict[str, type[Pipeline]] = {
    each.task: each
    for each in (
        FillMaskPipeline,
        TextClassificationPipeline,
        TokenClassificationPipeline,
        ZeroShotClassificationPipeline,
        FeatureExtractionPipeline,
        SentenceSimilarityPipeline,
        MultipleChoicePipeline,
        QuestionAnsweringPipeline,
    )
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


@overload
def pipeline(
    task: Literal["fill-mask"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> FillMaskPipeline: ...


@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> TextClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["token-classification", "ner"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> TokenClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["zero-shot-classification"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> ZeroShotClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["feature-extraction"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> FeatureExtractionPipeline: ...


@overload
def pipeline(
    task: Literal["sentence-similarity"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> SentenceSimilarityPipeline: ...


@overload
def pipeline(
    task: Literal["multiple-choice"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> MultipleChoicePipeline: ...


@overload
def pipeline(
    task: Literal["question-answering"],
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> QuestionAnsweringPipeline: ...


@overload
def pipeline(
    task: str,
    model: str | Path | Engine,
    *,
    precision: Precision = ...,
    backend: BackendName = ...,
    threads: int | None = ...,
    revision: str | None = ...,
    **defaults: Any,
) -> Pipeline: ...


def pipeline(
    task: str,
    model: str | Path | Engine,
    *,
    precision: Precision = "fp32",
    backend: BackendName = "auto",
    threads: int | None = None,
    revision: str | None = None,
    **defaults: Any,
) -> Pipeline:
    """A callable for ``task``, one of ``PIPELINES`` or an alias that transformers has for it.

    ``model`` is a local directory, a hub id, or an ``Engine`` that is loaded already. ``defaults`` are keyword
    arguments of every call (``top_k=3``); see the task's class for them. Raises the errors of
    ``Engine.from_pretrained``, and InputError for a task or a default that is not known.
    """
    chosen = pipeline_class(task)
    chosen.check_names(defaults)  # before anything is fetched
    if not isinstance(model, Engine):
        model = Engine.from_pretrained(
            model, task=chosen.engine_task, precision=precision, backend=backend, threads=threads, revision=revision
        )
    if model.task != chosen.engine_task:
        raise InputError(f"The engine was loaded for {model.task}, not for {chosen.engine_task}.")
    return chosen(model, defaults)


def pipeline_class(task: str) -> type[Pipeline]:
    """The pipeline for ``task``, one of ``PIPELINES`` or an alias; raises InputError."""
    name = ALIASES.get(task, task)
    chosen = PIPELINES.get(name)
    if chosen is None:
        raise InputError(f"There is no pipeline for task {name!r}; {listed(name, PIPELINES)}.")
    return chosen
