"""Types of the public API, checked by mypy in ``make lint``; nothing here is run.

Each ``type: ignore`` is a call that mypy must reject; an unused one is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import distilfast
from distilfast import Engine, Outputs, PackedBatch
from distilfast.pipelines import (
    FeatureExtractionPipeline,
    FillMaskPipeline,
    Pipeline,
    QuestionAnsweringPipeline,
    TextClassificationPipeline,
)
from distilfast.types import Task

if TYPE_CHECKING:
    from typing_extensions import assert_type


def pipelines(task: str) -> None:
    assert_type(distilfast.pipeline("fill-mask", "model"), FillMaskPipeline)
    assert_type(distilfast.pipeline("text-classification", "model", precision="bf16"), TextClassificationPipeline)
    assert_type(distilfast.pipeline("sentiment-analysis", "model", top_k=3), TextClassificationPipeline)
    assert_type(distilfast.pipeline("feature-extraction", "model").embed(["a text"]), np.ndarray)
    assert_type(distilfast.pipeline("feature-extraction", "model").embed(iter(["a text"])), Iterator[np.ndarray])
    assert_type(distilfast.pipeline("feature-extraction", "model"), FeatureExtractionPipeline)
    assert_type(distilfast.pipeline("question-answering", "model", top_k=3), QuestionAnsweringPipeline)
    assert_type(distilfast.pipeline(task, "model"), Pipeline)
    distilfast.pipeline("fill-mask", "model", backend="gpu")  # type: ignore[call-overload]


def engines(batch: PackedBatch) -> None:
    engine = Engine.from_pretrained("model", task="fill-mask", precision="int8", backend="cpu")
    assert_type(engine.task, Task)
    assert_type(engine([[1, 2]]), Outputs)
    assert_type(engine.encode(batch), np.ndarray)
    assert_type(engine.logits(batch), np.ndarray)
    assert_type(engine.encode_with_logits(batch), tuple[np.ndarray, np.ndarray])
    assert_type(engine.trace(batch), dict[str, np.ndarray])
    Engine.from_pretrained("model", task="translation")  # type: ignore[arg-type]
    Engine.from_pretrained("model", precision="int4")  # type: ignore[arg-type]
    Engine.from_pretrained("model", backend="onnx")  # type: ignore[arg-type]
