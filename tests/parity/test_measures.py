"""The measures against slow definitions, and the steps against the reference's forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distilfast import PackedBatch, reference
from distilfast.config import ModelConfig
from distilfast.heads import TASKS
from distilfast.parity.answers import rank_correlation
from distilfast.parity.budgets import NAIVE_FACTOR, participation, sampling_slack, to_bf16, to_int8, to_two_bf16
from distilfast.parity.steps import forward, steps
from distilfast.parity.tally import ULP_BUCKETS, lowest_cosine, relative_error, shaped, ulp_histogram
from distilfast.weights import load_weights

Make = Callable[..., Path]


def slow_distance(a: float, b: float) -> int:
    """The float32 steps from a to b, counted one by one."""
    x, end = np.float32(a), np.float32(b)
    count = 0
    while x != end:
        x = np.nextafter(x, end)
        count += 1
    return count


def slow_bucket(distance: int) -> int:
    return 0 if distance == 0 else 1 + int(math.log2(distance))


def test_ulp_histogram_counts_float32_steps() -> None:
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.standard_normal(60), [0.0, -0.0, 1e-45, -1e-45, 1.0, 2.0, -1.0, 3e-38]])
    got = truth.astype(np.float32)
    for _ in range(3):
        got = np.where(rng.random(len(got)) < 0.6, np.nextafter(got, np.float32(rng.choice([-9, 9]))), got)
    got[:9] = truth[:9].astype(np.float32) * (1 + 2.0 ** -np.arange(12, 21)).astype(np.float32)
    want = [0] * ULP_BUCKETS
    for each, right in zip(got, truth, strict=True):
        want[slow_bucket(slow_distance(each, right))] += 1
    assert ulp_histogram(got, truth).tolist() == want


def test_ulp_histogram_at_the_extremes() -> None:
    """NaN and the largest distance are in the last bucket; both zeros are one number."""
    assert ulp_histogram(np.float32([np.nan]), np.array([1.0]))[-1] == 1
    assert ulp_histogram(np.float32([np.inf]), np.array([-np.inf]))[-1] == 1
    assert ulp_histogram(np.float32([-0.0]), np.array([0.0]))[0] == 1
    assert ulp_histogram(np.float32([-1e-45]), np.array([1e-45]))[2] == 1


def test_relative_error_and_cosine() -> None:
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(0.2)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.ones(3), np.zeros(3)) == math.inf
    assert math.isnan(relative_error(np.array([math.nan]), np.ones(1)))
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert lowest_cosine(rows, np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx(math.sqrt(0.5))
    assert math.isnan(lowest_cosine(np.array([[math.nan, 1.0]]), np.ones((1, 2))))


def test_probabilities_are_laid_out_by_query_head_and_key() -> None:
    batch = PackedBatch.from_sequences([[1, 2], [1], [1, 2, 3]])
    texts = [np.random.default_rng(length).random((4, length, length)) for length in (2, 1, 3)]
    laid = shaped("layer.0.probabilities", np.concatenate([text.ravel() for text in texts]), batch, 4)
    assert laid.shape == (6, 4, 3)
    for start, text in zip(batch.cu_seqlens, texts, strict=False):
        length = text.shape[1]
        np.testing.assert_array_equal(laid[start : start + length, :, :length], text.transpose(1, 0, 2))
        assert not laid[start : start + length, :, length:].any()


def test_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    for size in (3, 10, 100):
        a, b = rng.integers(0, size, size).astype(float), rng.standard_normal(size)
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


def test_participation_counts_equal_rows_and_a_dominant_row_as_one() -> None:
    for rows, want in (([2.0] * 7, 7.0), ([1e-9] * 50 + [3.0], 1.0), ([0.0], 1.0)):
        squares = np.array(rows)
        assert participation(squares.sum(), (squares**2).sum()) == pytest.approx(want)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 32, 200])
def test_sampling_slack_covers_errors_of_the_same_size(rows: int) -> None:
    """From four rows on, at most one in a thousand ratios of two such errors exceeds the factor two times the slack."""
    rng = np.random.default_rng(rows)
    ours, naive = (np.sqrt((rng.standard_normal((20_000, rows)) ** 2).sum(axis=1)) for _ in range(2))
    beyond = float((ours / naive > NAIVE_FACTOR * sampling_slack(rows)).mean())
    assert beyond <= {1: 0.03, 2: 0.01}.get(rows, 0.001)


def test_sampling_slack_goes_to_one() -> None:
    assert 1.0 < sampling_slack(1e6) < 1.01
    assert sampling_slack(100, among=3072) > sampling_slack(100)


def test_rounding_to_bf16_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(2).standard_normal(10_000).astype(np.float32) * np.float32(1e3)
    want = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(to_bf16(x), want)
    assert relative_error(to_two_bf16(x), x) < 2.0**-16 < relative_error(want, x)


def test_rounding_to_int8_has_255_steps_for_each_row() -> None:
    x = np.random.default_rng(3).standard_normal((5, 1000)).astype(np.float32)
    x[0] *= 1e3
    x[1] = 0
    for row, narrow in zip(x, to_int8(x), strict=True):
        assert len(np.unique(narrow)) <= 255
        assert np.abs(narrow - row).max() <= np.abs(row).max() / 127 * 0.5001


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_steps_are_the_reference_to_the_bit(tiny_checkpoint: Make, model_type: str, task: str, dtype: type) -> None:
    directory = tiny_checkpoint(model_type, task)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task)
    tensors = {name: tensor.astype(dtype) for name, tensor in weights.tensors.items()}
    batch = PackedBatch.from_sequences([[2, 77, 3], [2, 5, 6, 200, 3], [9]])
    want: dict[str, np.ndarray] = {}
    x = reference.encoder(batch, tensors, config, want)
    if head.linears:
        rows = batch.first_rows if head.rows == "first" else slice(None)
        reference.run_head(x[rows], head, tensors, config.layer_norm_eps, want)
    got = forward(steps(batch, config, head), tensors)
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == dtype
        np.testing.assert_array_equal(got[name], array)
