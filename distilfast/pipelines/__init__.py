"""Tasks end to end: ``pipeline(task, model)`` answers texts with the dicts of ``transformers.pipeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline
from distilfast.pipelines.feature_extraction import FeatureExtractionPipeline
from distilfast.pipelines.fill_mask import FillMaskPipeline
from distilfast.pipelines.text_classification import TextClassificationPipeline

PIPELINES: dict[str, type[Pipeline]] = {
    each.task: each for each in (FillMaskPipeline, TextClassificationPipeline, FeatureExtractionPipeline)
}
_ALIASES = {"sentiment-analysis": "text-classification"}


def pipeline(
    task: str,
    model: str | Path | Engine,
    *,
    precision: str = "fp32",
    backend: str = "auto",
    threads: int | None = None,
    revision: str | None = None,
    **defaults: Any,
) -> Any:
    """A callable for ``task`` ("fill-mask", "text-classification" or "feature-extraction").

    ``model`` is a local directory, a hub id, or an ``Engine`` that is loaded already. ``defaults`` are keyword
    arguments of every call (``top_k=3``). Raises the errors of ``Engine.from_pretrained``.
    """
    task = _ALIASES.get(task, task)
    if task not in PIPELINES:
        raise InputError(f"There is no pipeline for task {task!r}; there are {', '.join(PIPELINES)}.")
    if not isinstance(model, Engine):
        model = Engine.from_pretrained(
            model, task=task, precision=precision, backend=backend, threads=threads, revision=revision
        )
    if model.task != task:
        raise InputError(f"The engine was loaded for {model.task}, not for {task}.")
    return PIPELINES[task](model, defaults)
