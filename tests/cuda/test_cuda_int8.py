"""int8 of more than 64 rows (W8A8): Hadamard-rotated groups of 128, their products, and a whole encoder."""

from __future__ import annotations

import numpy as np
import pytest
from elements import (
    W_ROTATION,
    X_ROTATION,
    Int8Linear,
    from_raw,
    hadamard_rotated,
    number,
    outlier_channels,
    outlier_slots,
    raw,
    rounded,
    stored,
)

from distilfast import Engine, reference
from distilfast.backends import cuda
from distilfast.batch import PackedBatch
from distilfast.parity import compare, relative_error, sample_texts
from distilfast.parity.budgets import budget_for
from tests.kernels import naive

# Nothing but outlier channels; a part of a group, whole ones; several blocks of outlier channels.
DEPTHS = (1, 40, 64, 72, 130, 200, 256, 300, 768, 800)
ROWS = {128: (65, 128), 256: (129,), 512: (300,)}  # by bucket; the last has a tile of its own
SIZES = ((8, 40), (72, 64), (200, 72), (72, 300), (40, 768), (8, 800))


@pytest.fixture
def linear(normal, rng):
    """``linear(n, k)``: weights, channels with means of their own, and outlier channels anywhere."""

    def make(n: int, k: int) -> Int8Linear:
        outliers = np.sort(rng.permutation(k)[: outlier_channels(k)]).astype(np.int32)
        return Int8Linear(normal(n, k, scale=0.1), normal(k), outliers)

    return make


@pytest.fixture
def inputs(normal):
    """``inputs(rows, linear)``: bf16 numbers around the channel shifts, outliers ``reach`` times as far."""

    def make(rows: int, linear: Int8Linear, reach: float = 1) -> np.ndarray:
        x = normal(rows, len(linear.channel_shift))
        x[:, linear.outlier_channels] *= np.float32(reach)
        return rounded(x + linear.channel_shift, "bf16")

    return make


def on_device(extension, linear, bias):
    return extension.Linear(
        linear.weight,
        linear.shifted_bias(bias),
        precision="int8",
        channel_shift=linear.channel_shift,
        outlier_channels=linear.outlier_channels,
    )


def check(got, low, linear, x, bias, activation="none"):
    exact = linear.product(x, np.float64) + linear.shifted_bias(bias).astype(np.float64)
    truth = reference.ACTIVATIONS[activation](exact)
    plain = linear.product(x, np.float32) + linear.shifted_bias(bias)
    plain = rounded(reference.ACTIVATIONS[activation](plain).astype(np.float32), "bf16")
    assert naive.error(from_raw(low, "int8"), truth) <= naive.allowed(plain, truth)
    # Sums of fp32 alone: far below a step of any group.
    assert naive.error(got, truth) <= 1e-5


def test_the_matrix_instruction(faults, rng):
    """Every lane's words, the ends of int8, and sums that are added to."""
    a, b = (rng.integers(-128, 128, (rows, 32)) for rows in (16, 8))
    a[0], b[0] = -128, -128
    c = rng.integers(-(2**20), 2**20, (16, 8))
    got = faults.product_of_bytes(a.astype(np.int8).tobytes(), b.astype(np.int8).tobytes(), c.ravel().tolist())
    assert np.array_equal(np.reshape(got, (16, 8)), c + a @ b.T)


@pytest.mark.parametrize("distances", [X_ROTATION, W_ROTATION])
def test_the_reference_rotates_by_a_hadamard_matrix(distances):
    matrix = hadamard_rotated(np.eye(128, dtype=np.float32), distances)
    assert np.array_equal(matrix @ matrix.T, 128 * np.eye(128))
    assert np.array_equal(np.abs(matrix), np.ones((128, 128)))


@pytest.mark.parametrize("k", DEPTHS)
def test_operands(extension, linear, inputs, k):
    """Bit for bit what numpy makes."""
    made = linear(8, k)
    x = inputs(70, made)
    units, scales = on_device(extension, made, np.zeros(8, np.float32)).quantize_activations(raw(x, "int8"))
    outliers, integers, wanted_scales = made.quantize_activations(x)
    front = 2 * outlier_slots(k)
    assert np.array_equal(number(units[:, :front].copy().view(np.uint16), "bf16"), outliers)
    assert np.array_equal(units[:, front:].view(np.int8), integers.reshape(70, -1))
    assert np.array_equal(scales, stored(wanted_scales.T, "bf16"))


@pytest.mark.parametrize("magnitude", [0.0, 1e-37, 1e30])
def test_operands_of_any_magnitude(extension, linear, normal, magnitude):
    """No step that is zero or has no inverse makes a NaN."""
    made = Int8Linear(linear(8, 256).weight, np.zeros(256, np.float32), np.arange(128, dtype=np.int32))
    x = rounded(magnitude * normal(65, 256), "bf16")
    got = on_device(extension, made, np.zeros(8, np.float32))(raw(x, "int8"))[0]
    truth = x.astype(np.float64) @ made.weight.T.astype(np.float64)
    assert np.isfinite(got).all()
    assert np.abs(got - truth).max() <= 0.01 * np.abs(truth).max() + 1e-36


@pytest.mark.parametrize("bucket", ROWS)
def test_sizes(extension, linear, inputs, normal, bucket):
    for n, k in SIZES:
        made, bias = linear(n, k), normal(n)
        runs = on_device(extension, made, bias)
        for rows in ROWS[bucket]:
            x = inputs(rows, made)
            check(*runs(raw(x, "int8"), bucket_rows=bucket), made, x, bias)


def test_gelu(extension, linear, inputs, normal):
    made, bias = linear(72, 200), normal(72)
    x = inputs(65, made)
    check(*on_device(extension, made, bias)(raw(x, "int8"), "gelu"), made, x, bias, "gelu")


@pytest.mark.parametrize("bucket", ROWS)
def test_splits_add_up(extension, linear, inputs, normal, bucket):
    """Each split leaves its units' part, the first one the outlier channels too, and none of them the bias."""
    made, bias = linear(72, 520), normal(72)
    x = inputs(65, made)
    parts, low = on_device(extension, made, bias)(raw(x, "int8"), split_k=3, bucket_rows=bucket)
    truth = made.product(x, np.float64)
    assert low.size == 0
    assert naive.error(parts.reshape(3, 65, 72).astype(np.float64).sum(axis=0), truth) <= 1e-5
    assert all(part.any() for part in parts.reshape(3, 65, 72))


@pytest.mark.parametrize("bucket", ROWS)
def test_gathered_rows(extension, linear, inputs, normal, rng, bucket):
    made, index = linear(24, 200), np.sort(rng.permutation(100)[:66]).astype(np.int32)
    x, runs = raw(inputs(100, made), "int8"), on_device(extension, made, normal(24))
    whole = runs(x, bucket_rows=bucket)[0]
    assert np.array_equal(runs(x, gather=index, bucket_rows=bucket)[0], whole[index])


def test_bits_do_not_depend_on_other_rows(extension, linear, inputs, normal):
    made = linear(40, 300)
    x, runs = raw(inputs(130, made), "int8"), on_device(extension, made, normal(40))
    whole = runs(x, bucket_rows=256)[0]
    for begin, end in ((0, 1), (1, 67), (123, 130)):
        assert np.array_equal(runs(x[begin:end], bucket_rows=256)[0], whole[begin:end])


def test_a_nan_stays_in_its_row(extension, linear, inputs, normal):
    """One of a group and one of an outlier channel; infinity becomes one, since its group has no step."""
    made = linear(24, 256)
    x, narrow = inputs(70, made), np.setdiff1d(np.arange(256), made.outlier_channels)
    x[4, narrow[7]], x[9, made.outlier_channels[3]], x[69, narrow[90]] = np.nan, np.nan, np.inf
    got = on_device(extension, made, normal(24))(raw(x, "int8"))[0]
    assert np.isnan(got[[4, 9, 69]]).all()
    assert np.isfinite(np.delete(got, [4, 9, 69], axis=0)).all()


def test_closer_than_a_scale_for_each_row(extension, linear, inputs):
    """Against the product of what was not rounded: channel shifts, outliers and groups are worth what they cost."""
    made = linear(64, 384)
    x = inputs(128, made, reach=100)
    truth = x.astype(np.float64) @ made.weight.T.astype(np.float64)
    got = on_device(extension, made, np.zeros(64, np.float32))(raw(x, "int8"))[0]

    def by_row(numbers):
        step = np.abs(numbers).max(axis=1, keepdims=True) / 127
        return np.rint(numbers / step) * step

    plain = by_row(x.astype(np.float64)) @ by_row(made.weight.astype(np.float64)).T
    assert naive.error(got, truth) <= naive.error(plain, truth) / 5


def test_what_cannot_be_had_is_said(extension, linear, normal):
    made, x = linear(8, 64), raw(normal(65, 64), "int8")
    alone = extension.Linear(made.weight, normal(8), precision="int8")
    with pytest.raises(ValueError, match="^int8 needs channel_shift and outlier_channels for more than 64 rows"):
        alone(x)
    with pytest.raises(ValueError, match="^int8 needs channel_shift and outlier_channels for more than 64 rows"):
        on_device(extension, made, normal(8))(x[:64])
    with pytest.raises(ValueError, match="^Activations are quantised for int8 with channel_shift and outlier_channels"):
        alone.quantize_activations(x)
    for precision, outliers in (("bf16", made.outlier_channels), ("int8", made.outlier_channels[:-1])):
        with pytest.raises(
            ValueError, match=r"^channel_shift \[K\] and outlier_channels \[outlier_channels\(K\)\] are for int8"
        ):
            extension.Linear(
                made.weight, normal(8), precision=precision, channel_shift=made.channel_shift, outlier_channels=outliers
            )


# ---- the encoder

WIDTHS = {"dim": 192, "n_heads": 3, "hidden_dim": 600, "n_layers": 2, "max_position_embeddings": 128}
"""More channels than are outliers, and a depth that ends inside a group."""


@pytest.fixture
def engine(extension, tiny_checkpoint, monkeypatch):
    """``engine(task)``: int8 on this extension."""
    monkeypatch.setattr(cuda, "extension", lambda: extension)

    def make(task):
        directory = tiny_checkpoint("distilbert", task, config=WIDTHS)
        return Engine.from_pretrained(directory, backend="cuda", precision="int8")

    return make


def batch_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return PackedBatch.from_sequences([rng.integers(0, 256, length).tolist() for length in lengths])


@pytest.mark.usefixtures("few_texts")
def test_every_intermediate_keeps_its_budget(extension, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(cuda, "extension", lambda: extension)
    report = compare(tiny_checkpoint("distilbert", "fill-mask", config=WIDTHS), backend="cuda", precision="int8")
    assert report.tokens > 64
    assert report.passed, report.sentence


def test_trained_weights_keep_their_budget(extension, minilm, monkeypatch):
    monkeypatch.setattr(cuda, "extension", lambda: extension)
    few = [sample_texts.TEXTS[i] for i in (0, 1, 7, 12, 19)]  # the simulated device takes seconds for each
    monkeypatch.setattr(sample_texts, "TEXTS", few)
    report = compare(minilm, backend="cuda", precision="int8")
    assert report.tokens > 64
    assert report.passed, report.sentence


@pytest.mark.parametrize("sequences", [3, 70])
def test_rows_that_no_one_needs_are_skipped(engine, sequences):
    """The last layer on few rows, which has W alone in int8, and on many that are gathered for their operands.

    Each keeps its cosine; so far may they be from each other.
    """
    runs, batch = engine("text-classification"), batch_of(*[30, 2, 40, *[1] * 67][:sequences])
    hidden, both = runs.encode_with_logits(batch)
    assert len(hidden) > 64
    assert relative_error(runs.logits(batch), both) <= 2 * np.sqrt(2 * (1 - budget_for("int8").cosine))


def test_bits_do_not_depend_on_batch_mates(engine):
    runs, texts = engine("token-classification"), [batch_of(70, seed=1), batch_of(30, seed=2), batch_of(9, seed=3)]
    together = PackedBatch.from_sequences([text.input_ids.tolist() for text in texts[::-1]])
    assert np.array_equal(runs.encode(texts[0]), runs.encode(together)[39:])


def test_info_says_how_it_is_computed(engine):
    assert engine("token-classification").info()["detail"].endswith(f"int8 ({cuda.INT8})")
