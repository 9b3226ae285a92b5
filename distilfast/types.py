"""The names that a caller chooses among: precisions, backends and tasks."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "fp64", "bf16x3", "bf16", "fp16", "int8"]
"""The arithmetic of an engine; fp64 is that of the reference backend alone."""

BackendName = Literal["auto", "cpu", "triton", "cuda", "reference"]
"""A backend; "auto" chooses one when the engine is loaded."""

Task = Literal[
    "feature-extraction",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
]
"""A head, by the task names of ``transformers.pipeline``; "multiple-choice" has no pipeline there."""
