"""The whole encoder: every intermediate within its budget, and rows, columns, buckets, chunks, graphs and callers."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from elements import LINEAR_PRECISIONS, PRECISIONS

from distilfast import Engine
from distilfast.backends import cuda
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.errors import BackendError
from distilfast.heads import TASKS
from distilfast.parity import compare, comparison, relative_error
from distilfast.parity.budgets import budget_for
from distilfast.parity.oracles import ReferenceOracle, in_float64
from distilfast.weights import load_weights

SHORT = {"max_position_embeddings": 24}
ORDER_TOLERANCE = {"fp32": 2.0**-20, "fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2.0**-7}
"""What another order of summation may change in values around 1: a 16-bit operand that rounds the other way at a tie
changes them by one ulp of its type, and fp32 sums change by a few ulp."""
HEAD_SIZE_64 = {"dim": 128, "n_heads": 2, "hidden_dim": 160, "n_layers": 1, "max_position_embeddings": 24}


@pytest.fixture(autouse=True)
def backend(extension, monkeypatch):
    """Backend "cuda" runs this extension."""
    monkeypatch.setattr(cuda, "extension", lambda: extension)


@pytest.fixture
def engine(tiny_checkpoint):
    def make(task="token-classification", precision="fp32", model_type="distilbert", **config):
        directory = tiny_checkpoint(model_type, task, config=config)
        return Engine.from_pretrained(directory, backend="cuda", precision=precision)

    return make


def test_results_on_the_device(extension, engine):
    """The same bits as results on the host, alive while they are referenced, and ordered after the caller's stream."""
    made = engine()
    batches = [batch_of(5, 17, seed=seed) for seed in range(3)]
    wanted = [made.encode_with_logits(batch) for batch in batches]
    held = [made.forward_on_device(batch, hidden=True, stream=0) for batch in batches]
    for (hidden, head), truth in zip(held, wanted, strict=True):
        facts = hidden.__cuda_array_interface__
        assert (facts["shape"], facts["typestr"], facts["version"]) == (truth[0].shape, "<f4", 3)
        assert np.array_equal(fetched(hidden), truth[0])
        assert np.array_equal(fetched(head), truth[1])
    array = held[0][0]
    del held, hidden, head  # one array keeps the workspace alive
    made.logits(batch_of(9, 9, seed=9))
    assert np.array_equal(fetched(array), wanted[0][0])


def test_the_stream_on_which_results_are_ready_is_exported(simulated, engine):
    """As the interface has it: readers on other streams have to wait for it, and 0 is not allowed."""
    made = engine()

    def exported(stream):
        hidden = made.forward_on_device(batch_of(3), hidden=True, stream=stream)[0]
        return hidden.__cuda_array_interface__["stream"]

    assert (exported(0), exported(1)) == (1, 1)
    if not simulated:
        return  # only there another library's stream can be made
    with simulated.stream() as stream:
        assert exported(stream) == stream


@pytest.mark.parametrize("tokens", [113, 114])  # of 288 floats each: just below 128 KiB, and just above
def test_results_reach_the_host_complete(engine, tokens):
    """Small ones through pinned memory and large ones directly: equal to what is on the device."""
    made, batch = engine("fill-mask"), batch_of(60, tokens - 60)
    on_device = made.forward_on_device(batch, hidden=True, stream=0)
    for array, wanted in zip(made.encode_with_logits(batch), on_device, strict=True):
        assert np.array_equal(array, fetched(wanted))


def test_memory_stays_flat_under_changing_shapes(extension, engine):
    """10,000 of them, or 50 on the simulated device, which is slow. A real one allocates in units of 2 MiB."""
    simulated = extension.__name__ == "_cuda_host"
    made, rng = engine(n_layers=1), np.random.default_rng(3)
    for lengths in ((3,), (19,), (19, 19, 19)):  # every bucket that is used below
        made.logits(batch_of(*lengths))
    held, used = made.info()["scratch_bytes"], extension.used_memory()
    for seed in range(50 if simulated else 10_000):
        made.logits(batch_of(*rng.integers(1, 20, rng.integers(1, 4)), seed=seed))
    assert made.info()["scratch_bytes"] == held
    assert abs(extension.used_memory() - used) <= (0 if simulated else 2 << 20)


def test_closing_frees_everything(simulated, engine):
    """Weights, and the memory, streams and graphs of three callers at once."""
    if not simulated:
        pytest.skip("a real device does not say what it holds, and other processes use it too")
    before = simulated.live_objects()
    made = engine()
    held = [made.forward_on_device(batch_of(length), stream=0) for length in (3, 20, 40)]
    assert simulated.live_objects() != before
    del made, held
    assert simulated.live_objects() == before


FIRST = [*((precision, False) for precision in LINEAR_PRECISIONS), ("fp32", True), ("bf16", True)]
"""fp16 and int8 differ from bf16 in operands alone, so the kernels of the options are the same templates."""


@pytest.mark.parametrize(("precision", "options"), FIRST)
def test_the_first_forward_of_a_process_builds_a_graph(host_build, tiny_checkpoint, precision, options):
    """Nothing ran before, so a kernel that was not loaded with the model would be first used in the graph."""
    script = f"""
from host_build import imported
from distilfast import Engine, PackedBatch
from distilfast.backends import cuda
from pathlib import Path
module = imported("_cuda_host", Path({str(host_build)!r}))
cuda.extension, cuda.PERSISTENT, cuda.CLUSTERS = lambda: module, {options}, {options}
engine = Engine.from_pretrained({str(tiny_checkpoint("bert", "fill-mask"))!r}, backend="cuda", precision={precision!r})
for lengths in ((3,), (20,), (40, 41), (40,) * 7):
    print(engine.logits(PackedBatch.from_sequences([range(length) for length in lengths])).shape)
del engine
"""
    environment = os.environ | {"CUDA_HOST_LEAKS": "1"}  # the simulated device says at exit what was not freed
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == ["(3, 256)", "(20, 256)", "(81, 256)", "(280, 256)"], done.stderr
    assert "Left on the simulated device" not in done.stderr


@pytest.mark.parametrize(
    ("device", "captured", "sentence"),
    [
        (1, False, "The stream belongs to device 1 and the model to device 0."),
        (0, True, "The stream is being captured, and a forward cannot be part of another graph."),
        (None, False, "Stream 2 is the default stream of whichever thread uses it; pass a stream's own handle."),
    ],
)
def test_an_unusable_stream_is_an_error(simulated, engine, device, captured, sentence):
    if not simulated:
        pytest.skip("the streams of other libraries can be made on the simulated device only")
    made = engine()
    hidden = made.forward_on_device(batch_of(3), hidden=True, stream=0)[0]
    with contextlib.nullcontext(2) if device is None else simulated.stream(device, captured=captured) as stream:
        with pytest.raises(BackendError, match=f"^{re.escape(sentence)}$"):
            made.forward_on_device(batch_of(3), stream=stream)
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            hidden.__dlpack__(stream=stream)
    assert np.isfinite(fetched(hidden)).all()


def test_results_on_the_device_are_of_one_chunk_at_most(engine, monkeypatch):
    monkeypatch.setattr(cuda, "CHUNK_TOKENS", 16)
    made = engine()
    with pytest.raises(BackendError, match=r"^At most 16 tokens are run at once\.$"):
        made.forward_on_device(batch_of(9, 9), stream=0)
    assert made.logits(batch_of(9, 9)).shape[0] == 18


def fetched(array):
    """A copy on the host."""
    if array.__dlpack_device__()[0] == 1:
        array.wait()
        return np.from_dlpack(array).copy()
    import torch

    return torch.from_dlpack(array).cpu().numpy()


def batch_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return PackedBatch.from_sequences([rng.integers(0, 256, length).tolist() for length in lengths])


@pytest.mark.usefixtures("few_texts")
@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
@pytest.mark.parametrize("task", TASKS)
def test_every_intermediate_keeps_its_budget(tiny_checkpoint, precision, task):
    model_type = "bert" if task in ("feature-extraction", "fill-mask") else "distilbert"
    report = compare(tiny_checkpoint(model_type, task, config=SHORT), backend="cuda", precision=precision)
    assert report.passed, report.sentence


@pytest.mark.usefixtures("few_texts")
@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
def test_head_size_64(tiny_checkpoint, precision):
    directory = tiny_checkpoint("distilbert", "text-classification", config=HEAD_SIZE_64)
    report = compare(directory, backend="cuda", precision=precision)
    assert report.passed, report.sentence


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
def test_the_width_of_distilbert(extension, tiny_checkpoint, precision):
    """768 wide with 12 heads: split-K is in use, and a row has more values than a block has threads."""
    linear = extension.Linear(np.zeros((768, 3072), np.float32), np.zeros(768, np.float32), precision=precision)
    assert extension.__name__ != "_cuda_host" or linear.split_k(16) > 1
    wide = {"dim": 768, "n_heads": 12, "hidden_dim": 3072, "n_layers": 1}
    directory = tiny_checkpoint("distilbert", "token-classification", config=wide)
    weights, head = load_weights(directory, ModelConfig.from_file(directory / "config.json"), "token-classification")
    runs = Engine(weights, head, backend="cuda", precision=precision)
    batch, budget = batch_of(5, 1, 8), budget_for(precision)
    oracle = ReferenceOracle(weights, in_float64(weights), head, precision, budget)
    hidden = runs.encode(batch)
    truth, naive = (each["layer.0.output"] for each in (oracle.truth(batch), oracle.naive(batch)))
    assert relative_error(hidden, truth) <= budget.end_to_end(relative_error(naive, truth), len(hidden), last=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_the_head_does_not_read_are_skipped(engine, precision):
    """The last layer on a few rows gives the answers of one on all rows, but for another tile's order of summation."""
    runs, batch = engine("text-classification", precision), batch_of(5, 40, 1, 17)
    alone = runs.logits(batch)
    hidden, both = runs.encode_with_logits(batch)
    assert hidden.shape == (63, 32)
    assert np.allclose(alone, both, rtol=0, atol=ORDER_TOLERANCE[precision])


def test_a_graph_serves_every_batch_of_its_bucket(engine):
    """Sizes are read on the device, so the graph built for the first batch also runs other lengths, rows and ids."""
    runs, fresh = engine(), engine()
    for seed, lengths in enumerate([(30,), (1, 2, 3), (17, 15), (1,) * 20, (32,)]):
        batch = batch_of(*lengths, seed=seed)
        expected = fresh.encode_with_logits(batch)
        got = runs.encode_with_logits(batch)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        fresh = engine()


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
def test_bits_do_not_depend_on_batch_mates(engine, precision):
    """Within a bucket: a text alone, and with others after it."""
    runs, texts = engine(precision=precision), [batch_of(20, seed=1), batch_of(3, seed=2), batch_of(9, seed=3)]
    together = PackedBatch.from_sequences([text.input_ids.tolist() for text in texts])
    whole = runs.encode(together)
    alone = runs.encode(texts[0])
    assert np.array_equal(alone, whole[:20])


def test_columns_of_the_head(engine, monkeypatch):
    """Selected from all columns, in every chunk; together with a trace they are refused."""
    monkeypatch.setattr(cuda, "CHUNK_TOKENS", 32)
    encoder, batch = engine("fill-mask")._backend._encoder, batch_of(20, 12, 30)
    arrays = batch.input_ids, batch.positions, batch.token_types, batch.cu_seqlens, np.array([1, 19, 40], np.int32)
    columns = np.array([0, 3, 7], np.int32)
    whole, some = (encoder.forward(*arrays, False, None, *which)[1] for which in ((), (columns,)))
    assert np.array_equal(some, whole[:, columns])
    with pytest.raises(ValueError, match="no trace"):
        encoder.forward(*arrays, False, {}, columns)


def test_chunks_of_a_large_batch(engine, monkeypatch):
    """More tokens than a chunk holds: the answers are those of each chunk alone."""
    monkeypatch.setattr(cuda, "CHUNK_TOKENS", 32)
    runs, lengths = engine(), (20, 12, 1, 30, 50, 2)  # chunks of two texts, two, one (too long), one
    batch = batch_of(*lengths)
    hidden, whole = runs.encode_with_logits(batch)
    begin = 0
    for part in (slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)):
        end = begin + sum(lengths[part])
        pieces = np.split(batch.input_ids[begin:end], np.cumsum(lengths[part])[:-1])
        expected = runs.encode_with_logits(PackedBatch.from_sequences(pieces))
        assert np.array_equal(expected[0], hidden[begin:end])
        assert np.array_equal(expected[1], whole[begin:end])
        begin = end


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize(
    ("task", "lengths"),
    [
        *(("token-classification", lengths) for lengths in ((1,), (3, 9, 4), (5, 17), (64,))),
        *(("text-classification", lengths) for lengths in ((3, 9, 4), (64,))),
        ("fill-mask", (5, 17)),
    ],
)
def test_the_persistent_kernel_gives_the_bits_of_the_graph(engine, monkeypatch, precision, lengths, task):
    """It runs the same operations, in one launch."""
    batch = batch_of(*lengths)

    def answers():
        runs = engine(task, precision)
        return runs.encode_with_logits(batch) if task == "token-classification" else [runs.logits(batch)]

    graph = answers()
    monkeypatch.setattr(cuda, "PERSISTENT", True)
    assert all(np.array_equal(a, b) for a, b in zip(graph, answers(), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize(("persistent", "kernel"), [(False, "embed_kernel<.*>"), (True, "persistent_kernel<.*>")])
def test_the_requested_mode_runs(extension, engine, monkeypatch, persistent, kernel, precision):
    """The simulated device names the kernel that reads outside a table, here one that ends in the middle of a row."""
    if extension.__name__ != "_cuda_host":
        pytest.skip("an illegal access makes a real device unusable for this process")
    monkeypatch.setattr(cuda, "PERSISTENT", persistent)
    table = "embed.token_type"
    tensors_of = cuda.CudaBackend._tensors

    def with_half_a_row(backend, weights):
        tensors = tensors_of(backend, weights)
        return tensors | {table: tensors[table].ravel()[:1]}

    monkeypatch.setattr(cuda.CudaBackend, "_tensors", with_half_a_row)
    runs, batch = engine(precision=precision, model_type="bert"), batch_of(3)
    with pytest.raises(BackendError, match=rf"In {kernel} thread \d+ of block .* reads outside every"):
        runs._backend.forward(batch, None, True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", [SHORT, HEAD_SIZE_64])  # a row in one block, and in a cluster of two blocks
def test_clusters_keep_every_budget(tiny_checkpoint, monkeypatch, precision, config):
    """All texts in one batch, whose bucket of 512 tokens uses clusters."""
    monkeypatch.setattr(cuda, "CLUSTERS", True)
    monkeypatch.setattr(comparison, "BATCH_TOKENS", 512)
    directory = tiny_checkpoint("distilbert", "token-classification", config=config)
    report = compare(directory, backend="cuda", precision=precision)
    assert report.passed, report.sentence
    assert 256 < report.tokens <= 512


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
def test_clusters_run_in_large_buckets_only(engine, monkeypatch, precision):
    """There LayerNorm sums in another order; elsewhere, and in int8, which keeps two kernels, no bit changes."""
    batches, config = (batch_of(*(64,) * 4), batch_of(*(64,) * 4, 1)), {"n_layers": 1, "n_heads": 1}
    before = [engine(precision=precision, **config).encode(batch) for batch in batches]
    monkeypatch.setattr(cuda, "CLUSTERS", True)
    after = [engine(precision=precision, **config).encode(batch) for batch in batches]
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1]) == (precision == "int8")
    assert np.allclose(before[1], after[1], rtol=0, atol=ORDER_TOLERANCE[precision])


def test_clusters_on_the_rows_that_the_head_reads(engine, monkeypatch):
    """The last layer gathers 257 rows, of x and of the residual."""
    batch, config = batch_of(*(2,) * 257), {"n_layers": 1, "n_heads": 1}
    before = engine("text-classification", **config).logits(batch)
    monkeypatch.setattr(cuda, "CLUSTERS", True)
    after = engine("text-classification", **config).logits(batch)
    assert not np.array_equal(before, after)
    assert np.allclose(before, after, rtol=0, atol=ORDER_TOLERANCE["fp32"])


def test_several_callers_at_once(engine):
    runs, batches = engine(), [batch_of(5, 20), batch_of(30), batch_of(60, 10)]
    expected = [runs.logits(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: runs.logits(batches[i % 3]), range(12)))
    assert all(np.array_equal(answer, expected[i % 3]) for i, answer in enumerate(answers))


def test_a_second_forward_takes_no_more_memory(engine):
    runs = engine()
    runs.logits(batch_of(30))
    held = runs.info()["scratch_bytes"]
    for seed in range(3):
        runs.logits(batch_of(12, 13, seed=seed))
    assert runs.info()["scratch_bytes"] == held > 0


def test_a_batch_that_the_device_cannot_hold(extension, engine, monkeypatch):
    """One sentence, no partial allocation is kept, and the next batch runs; the simulated device has 1 GB."""
    if extension.__name__ != "_cuda_host":
        pytest.skip("a real device has room for it")
    monkeypatch.setattr(cuda, "CHUNK_TOKENS", 10**9)
    runs, batch = engine(), batch_of(30)
    expected = runs.logits(batch)
    held = runs.info()["scratch_bytes"]
    with pytest.raises(BackendError, match="^allocating device memory failed: out of memory.$"):
        runs.logits(batch_of(*(64,) * 10_000))
    assert runs.info()["scratch_bytes"] <= held
    assert np.array_equal(runs.logits(batch), expected)


def test_unsupported_precisions_and_shapes_are_errors(engine, tiny_checkpoint):
    with pytest.raises(BackendError, match="precision 'int4' is not available on backend cuda"):
        engine(precision="int4")
    with pytest.raises(BackendError, match="The head size is not a multiple of 8"):
        engine(n_heads=8)


def test_no_order_of_streams_changes_an_answer(simulated, engine):
    """Results are copied on their callers' streams and dropped, and workspaces lent again, while all is pending."""
    if not simulated:
        pytest.skip("only the simulated device chooses the order of what streams leave open")
    made, batches = engine(n_layers=1), [batch_of(*lengths, seed=len(lengths)) for lengths in ((3,), (9, 7), (2, 1, 9))]
    wanted = [made.logits(batch) for batch in batches]
    with simulated.stream() as one, simulated.stream() as two:
        for seed in range(8):
            simulated.seed(seed)
            copies = []
            for i in range(6):
                stream = (one, two)[i % 2]
                result = made.forward_on_device(batches[i % 3], stream=stream)[1]
                address = result.__cuda_array_interface__["data"][0]
                copies.append(simulated.copy_of(address, wanted[i % 3].nbytes, stream))
                del result
            for i, copy in enumerate(copies):
                assert simulated.content(copy, wanted[i % 3].nbytes) == wanted[i % 3].tobytes()
                simulated.free(copy)
