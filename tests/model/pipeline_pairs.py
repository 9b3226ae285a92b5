"""One checkpoint in our pipeline and in that of transformers, and how their answers are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from comparison import transformers_model

import distilfast
from distilfast.pipelines import PIPELINES

TOLERANCE = 1e-5
"""Absolute, of a score; stated by the project."""


class Both(NamedTuple):
    """Both pipelines of one checkpoint."""

    ours: Any
    reference: Any

    def check(self, inputs: Any, **options: Any) -> Any:
        """Our answer, after comparing it with the reference's."""
        got = self.ours(inputs, **options)
        assert_same(got, self.reference(inputs, **options))
        return got


def both(task: str, directory: Path, **defaults: Any) -> Both:
    transformers = pytest.importorskip("transformers")
    reference = transformers.pipeline(
        task,
        model=transformers_model(directory, PIPELINES[task].engine_task),
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        **defaults,
    )
    return Both(distilfast.pipeline(task, directory, **defaults), reference)


def assert_same(got: Any, want: Any, left_out: float | None = None) -> None:
    """``left_out``: in a ranking, the reference's score of the best answer beyond those requested."""
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert list(got) == list(want)
        assert abs(got["score"] - want["score"]) <= TOLERANCE
        assert {**got, "score": 0} == {**want, "score": 0}
    elif isinstance(want, list) and want and isinstance(want[0], dict):
        assert_same_ranking(got, want, left_out)
    elif isinstance(want, list):
        assert len(got) == len(want)
        for each, wanted in zip(got, want, strict=True):
            assert_same(each, wanted)
    else:
        assert abs(got - want) <= TOLERANCE


def assert_same_ranking(got: list[dict[str, Any]], want: list[dict[str, Any]], left_out: float | None) -> None:
    assert len(got) == len(want)
    scores = [word["score"] for word in want]
    np.testing.assert_allclose([word["score"] for word in got], scores, rtol=0, atol=TOLERANCE)
    gaps = np.abs(np.diff([np.inf, *scores, -np.inf if left_out is None else left_out]))
    for i in np.flatnonzero(np.minimum(gaps[:-1], gaps[1:]) > 2 * TOLERANCE):
        assert_same(got[i], want[i])
