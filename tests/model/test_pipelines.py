"""Each pipeline answers as ``transformers.pipeline`` does: same structure, keys, labels, tokens and strings.

Scores agree within 1e-5, which the project states. Where two answers of the reference are closer than that, either may
come first. Fifty real sentences each; the variants of every argument are in test_pipeline_arguments.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipeline_pairs import TOLERANCE, assert_same, both

Checkpoint = Callable[[str], Path]
Sentences = Callable[..., list[str]]


def with_mask(sentence: str, place: int) -> str:
    words = sentence.split()
    words[place % len(words)] = "[MASK]"
    return " ".join(words)


def test_fill_mask_on_real_sentences(full_checkpoint: Checkpoint, sentences: Sentences) -> None:
    pipes = both("fill-mask", full_checkpoint("fill-mask"))
    texts = [with_mask(text, i) for i, text in enumerate(sentences(25, (4, 30), seed=1))]
    wanted = pipes.reference(texts, top_k=6)
    answers = pipes.ours(texts)
    assert len(answers) == len(wanted) == 25
    for got, want in zip(answers, wanted, strict=True):
        assert want[0]["score"] > 50 * TOLERANCE, "the scores are too small for the tolerance"
        assert_same(got, want[:5], left_out=want[5]["score"])


@pytest.mark.filterwarnings("ignore:The target:UserWarning")
def test_fill_mask_with_several_masks_on_real_sentences(full_checkpoint: Checkpoint, sentences: Sentences) -> None:
    pipes = both("fill-mask", full_checkpoint("fill-mask"))
    texts = [with_mask(with_mask(text, i), i + 3) for i, text in enumerate(sentences(6, (8, 30), seed=2))]
    pipes.check(texts)
    pipes.check(texts, targets=["London", "Paris", "of", "Pneumonoultramicroscopic"])


def test_text_classification_on_real_sentences(full_checkpoint: Checkpoint, sentences: Sentences) -> None:
    """77 labels, as BANKING77 has; with and without ``top_k``."""
    pipes = both("text-classification", full_checkpoint("text-classification"))
    texts = sentences(25, (2, 40), seed=3)
    rankings = pipes.check(texts, top_k=None)
    assert [len(ranking) for ranking in rankings] == [77] * 25
    pipes.check(texts)


def test_feature_extraction_on_real_sentences(minilm: Path, sentences: Sentences) -> None:
    """Every value of every token, with trained weights."""
    both("feature-extraction", minilm).check(sentences(50, (2, 40), seed=4))


def test_feature_extraction_in_full_size(full_checkpoint: Checkpoint, sentences: Sentences) -> None:
    """The outlier channels reach 16 here: the tolerance is relative to the largest value of a text."""
    pipes = both("feature-extraction", full_checkpoint("feature-extraction"))
    texts = sentences(20, (2, 40), seed=5)
    for got, want in zip(pipes.ours(texts), pipes.reference(texts), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
