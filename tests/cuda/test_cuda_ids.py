"""Ids in device memory: through both protocols, as int32 and int64, and the errors for wrong ones."""

from __future__ import annotations

import contextlib
import ctypes
import re

import numpy as np
import pytest
from elements import PRECISIONS
from simulated import SimulatedDevice

from distilfast import DeviceBatch, Engine, PackedBatch
from distilfast.backends import cuda
from distilfast.errors import BackendError, InputError

LENGTHS = ((1,), (5, 17), (1, 1, 30, 2), (16,), (17,), (64,), (20, 40, 5))


class Array:
    """A numpy array's copy in device memory, as another library would hand it over."""

    def __init__(self, extension, values, protocol, **facts):
        self.values, self.facts = np.ascontiguousarray(values), facts
        self.memory, self.owner = self._placed(extension)
        if protocol == "interface":
            self.__cuda_array_interface__ = self._interface()
        else:
            self.__dlpack__, self.__dlpack_device__ = self._dlpack()

    def _placed(self, extension):
        if extension.__name__ == "_cuda_host":
            owner = SimulatedMemory(extension, self.values)
            return owner.address, owner
        import torch

        tensor = torch.from_numpy(self.values).cuda()
        return tensor.data_ptr(), tensor

    def _interface(self):
        facts = {"shape": self.values.shape, "typestr": self.values.dtype.str, "data": (self.memory, False)}
        return {**facts, "strides": None, "version": 3, **self.facts}

    def _dlpack(self):
        made = self.owner
        if isinstance(made, SimulatedMemory):
            made = made.array[:: self.facts.get("step", 1)]
        device = self.facts.get("device") or made.__dlpack_device__()
        return made.__dlpack__, lambda: device


class SimulatedMemory:
    """An allocation of the simulated device; ``array`` is the host's view of it."""

    def __init__(self, extension, values):
        self._device = SimulatedDevice(extension)
        self.address = self._device.holding(values.tobytes())
        raw = (ctypes.c_char * max(values.nbytes, 1)).from_address(self.address)
        self.array = np.frombuffer(raw, values.dtype, values.size).reshape(values.shape)

    def __del__(self):
        self._device.free(self.address)


@pytest.fixture(autouse=True)
def backend(extension, monkeypatch):
    monkeypatch.setattr(cuda, "extension", lambda: extension)


@pytest.fixture
def engine(tiny_checkpoint):
    def make(task="token-classification", model_type="distilbert", precision="fp32", **config):
        directory = tiny_checkpoint(model_type, task, config=config)
        return Engine.from_pretrained(directory, backend="cuda", precision=precision)

    return make


@pytest.fixture(params=["dlpack", "interface"])
def place(request, extension):
    """``place(values, dtype, **facts)``: on the device; None stays None."""

    def make(values, dtype=np.int32, **facts):
        return None if values is None else Array(extension, np.asarray(values).astype(dtype), request.param, **facts)

    make.protocol = request.param
    return make


def batch_of(*lengths, types=False):
    rng = np.random.default_rng(len(lengths))
    ids, kinds = ([rng.integers(0, most, length).tolist() for length in lengths] for most in (256, 2))
    return PackedBatch.from_sequences(ids, kinds if types else None)


def fetched(array):
    if array.__dlpack_device__()[0] == 1:
        with contextlib.suppress(ValueError):  # of what the batch holds
            array.wait()
        return np.from_dlpack(array).copy()
    import torch

    return torch.from_dlpack(array).cpu().numpy()


def on_device(place, batch, dtype=np.int32):
    return DeviceBatch(place(batch.input_ids, dtype), place(batch.cu_seqlens, dtype), place(batch.token_types, dtype))


def check(made, batch, device_batch, rows=None, device_rows=None, hidden=True):
    if not made.head.linears:
        truth = made.encode(batch), None
    else:
        truth = made.encode_with_logits(batch, rows=rows) if hidden else (None, made.logits(batch, rows=rows))
    got = made.forward_on_device(device_batch, device_rows, hidden=hidden, stream=0)
    for array, wanted in zip(got, truth, strict=True):
        assert (array is None) == (wanted is None)
        if array is not None:
            array.wait()
            assert np.array_equal(fetched(array), wanted)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ids_on_the_device_give_the_bits_of_ids_on_the_host(engine, place, dtype):
    """In several buckets, cut into sequences in several ways; both kinds of ids go through the same buffers."""
    made = engine()
    for lengths in LENGTHS:
        batch = batch_of(*lengths)
        check(made, batch, on_device(place, batch, dtype))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_heads_of_first_tokens_and_token_types(engine, place, precision):
    batch = batch_of(5, 17, 2, types=True)
    check(engine("feature-extraction", "bert", precision), batch, on_device(place, batch, np.int64))
    check(engine("text-classification", "bert", precision), batch, on_device(place, batch), hidden=False)


def test_ids_that_are_still_being_written(extension, simulated, engine):
    """By work on the stream that their interface names, which the forward has to follow."""
    if not simulated:
        pytest.skip("only the simulated device chooses the order of what streams leave open")
    made, batch = engine(n_layers=1), batch_of(5, 2)
    truth, ends = made.logits(batch), Array(extension, batch.cu_seqlens, "interface")
    ids = Array(extension, batch.input_ids, "interface")
    begin = ids.memory
    with simulated.stream() as stream, simulated.stream() as caller:
        for seed in range(4):
            simulated.seed(seed)
            copy = simulated.copy_of(begin, batch.input_ids.nbytes, stream)
            ids.__cuda_array_interface__ |= {"data": (copy, False), "stream": stream}
            result = made.forward_on_device(DeviceBatch(ids, ends), stream=caller)[1]
            assert np.array_equal(fetched(result), truth)
            simulated.free(copy)


def test_rows_that_are_on_the_device(engine, place):
    batch, rows = batch_of(20, 9), np.array([0, 3, 28], np.int32)
    check(engine(), batch, on_device(place, batch), rows, place(rows, np.int64))


def test_more_sequences_than_a_block_has_threads(extension, engine):
    def place(values, dtype):
        return None if values is None else Array(extension, values.astype(dtype), "interface")

    batch = batch_of(*(1,) * 257)
    check(engine("text-classification", n_layers=1), batch, on_device(place, batch), hidden=False)


@pytest.mark.parametrize(
    ("what", "at", "value", "sentence", "spoiled"),
    [
        ("input_ids", 6, 256, "input_ids holds a number outside 0 to 255.", (5, 22)),
        ("input_ids", 0, -1, "input_ids holds a number outside 0 to 255.", (0, 5)),
        ("input_ids", 21, 2**32 + 3, "input_ids holds a number outside 0 to 255.", (5, 22)),
        ("token_types", 4, 2, "token_types holds a number outside 0 to 1.", (0, 5)),
        ("cu_seqlens", 0, 1, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", (0, 24)),
        ("cu_seqlens", 1, 22, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", (0, 24)),
        ("cu_seqlens", 1, 2**40, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", (0, 24)),
        ("cu_seqlens", 1, -5, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", (0, 24)),
        ("cu_seqlens", 3, 23, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", (0, 24)),
        ("cu_seqlens", 3, 25, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", (0, 24)),
    ],
)
def test_wrong_numbers_are_reported_and_give_no_answer(engine, place, what, at, value, sentence, spoiled):
    """NaN for the sequences concerned, the usual answers for the others, and the next batch runs."""
    made, batch = engine("token-classification", "bert"), batch_of(5, 17, 2, types=True)
    truth = made.logits(batch)
    arrays = {name: getattr(batch, name).astype(np.int64) for name in ("input_ids", "cu_seqlens", "token_types")}
    arrays[what][at] = value
    wrong = DeviceBatch(*(place(arrays[name], np.int64) for name in ("input_ids", "cu_seqlens", "token_types")))
    result = made.forward_on_device(wrong, stream=0)[1]
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        result.wait()
    got, begin, end = fetched(result), *spoiled
    assert np.isnan(got[begin:end]).all()
    assert np.array_equal(got[:begin], truth[:begin])
    assert np.array_equal(got[end:], truth[end:])
    check(made, batch, on_device(place, batch))


@pytest.mark.parametrize("rows", [[0, 0], [3, 2], [-1, 2], [0, 7], [2**40]])
def test_wrong_rows(engine, place, rows):
    batch = batch_of(5, 2)
    result = engine().forward_on_device(on_device(place, batch), place(rows, np.int64), stream=0)[1]
    with pytest.raises(ValueError, match=r"^rows must be strictly increasing and lie within the tokens\.$"):
        result.wait()
    assert np.isnan(fetched(result)).all()


def test_a_sequence_longer_than_the_positions(engine, place):
    batch = batch_of(65, 3)
    result = engine().forward_on_device(on_device(place, batch), stream=0)[1]
    with pytest.raises(ValueError, match=r"^A sequence is longer than the model's 64 positions\.$"):
        result.wait()
    assert np.isnan(fetched(result)[:65]).all()
    assert np.isfinite(fetched(result)[65:]).all()


def refused(made, sentence, *arrays, rows=None):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        made.forward_on_device(DeviceBatch(*arrays), rows, stream=0)


def test_arrays_that_cannot_be_read(engine, place):
    made, batch = engine(), batch_of(5, 2)
    ids, ends = place(batch.input_ids), place(batch.cu_seqlens)
    neither = "{} has neither DLPack nor __cuda_array_interface__; an array on the GPU is needed."
    refused(made, neither.format("input_ids"), [1, 2, 3], ends)
    refused(made, neither.format("cu_seqlens"), ids, (0, 7))
    refused(made, "input_ids does not hold int32 or int64.", place(batch.input_ids, np.float32), ends)
    refused(made, "cu_seqlens does not hold int32 or int64.", ids, place(batch.cu_seqlens, np.int16))
    refused(made, "input_ids has 2 dimensions and not 1.", place([[1, 2], [3, 4]]), ends)
    refused(made, "The batch is empty; at least one token is needed.", place([]), ends)
    refused(made, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", ids, place([0]))
    refused(made, "cu_seqlens must be strictly increasing from 0 to the number of tokens.", ids, place(np.arange(9)))
    refused(made, "token_types and input_ids are not of the same length.", ids, ends, place([0, 0]))
    refused(made, "rows must be strictly increasing and lie within the tokens.", ids, ends, rows=place(np.arange(8)))


def test_arrays_that_lie_elsewhere(simulated, engine, place):
    if not simulated:
        pytest.skip("the arrays claim devices that only the simulation has")
    made, batch = engine(), batch_of(5, 2)
    ids, ends = place(batch.input_ids), place(batch.cu_seqlens)
    if place.protocol == "dlpack":
        other = "input_ids lies on device 1 and the model on device 0."
        refused(made, other, place(batch.input_ids, device=(1, 1)), ends)
        refused(made, "cu_seqlens does not lie on a CUDA device.", ids, place([0, 5, 7], device=(10, 0)))
        refused(made, "input_ids is not contiguous.", place(batch.input_ids, step=2), ends)
    else:
        host = (batch.input_ids.ctypes.data, False)
        refused(made, "input_ids does not lie on a CUDA device.", place(batch.input_ids, data=host), ends)
        refused(made, "input_ids is not contiguous.", place(batch.input_ids, strides=(8,)), ends)
        refused(made, "input_ids has a mask.", place(batch.input_ids, mask=ends), ends)
        shifted = (ids.memory + 2, False)
        refused(made, "input_ids is not aligned to its numbers.", place([1], data=shifted), ends)
        with simulated.stream(device=1) as stream:
            other = place(batch.input_ids, stream=stream)
            with pytest.raises(InputError, match=r"^The stream belongs to device 1 and the model to device 0\.$"):
                made.forward_on_device(DeviceBatch(other, ends), stream=0)


def test_more_tokens_than_a_chunk_are_an_error(engine, place, monkeypatch):
    monkeypatch.setattr(cuda, "CHUNK_TOKENS", 16)
    made, batch = engine(), batch_of(9, 9)
    with pytest.raises(BackendError, match=r"^At most 16 tokens are run at once\.$"):
        made.forward_on_device(on_device(place, batch), stream=0)


def test_the_cpu_backend_has_no_results_on_a_device(tiny_checkpoint):
    made = Engine.from_pretrained(tiny_checkpoint("distilbert", "token-classification"), backend="cpu")
    with pytest.raises(BackendError, match=r"^backend cpu computes on the host; encode and logits have its results\.$"):
        made.forward_on_device(DeviceBatch(None, None))
