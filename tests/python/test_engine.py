"""``engine(...)``: inputs as lists, numpy or torch, outputs, and ``info``; tests/model checks the values."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import Engine, InputError, Outputs, PackedBatch, pipeline
from distilfast.backends import cpu
from distilfast.heads import TASKS

Make = Callable[..., Path]

IDS = [[2, 7, 8, 9, 3], [2, 200, 3, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
TYPES = [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Make) -> Engine:
    """BERT, which reads all three arguments."""
    return Engine.from_pretrained(tiny_checkpoint("bert", "feature-extraction"))


def bits(outputs: Outputs) -> dict[str, Any]:
    """The bytes of each field."""
    return {
        name: [np.asarray(each).tobytes() for each in (value if isinstance(value, tuple) else [value])]
        for name, value in outputs.to_dict().items()
    }


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_any_integers(engine: Engine, dtype: str) -> None:
    arguments = [np.array(values, dtype) for values in (np.array(IDS) % 100, MASK, TYPES)]
    wanted = engine(*(array.tolist() for array in arguments))
    assert bits(engine(*arguments)) == bits(wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_torch_in_and_torch_out(engine: Engine, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    ids, mask, types = (torch.tensor(values).to(getattr(torch, dtype)) for values in (IDS, MASK, TYPES))
    outputs = engine(ids, mask, types, **EVERYTHING)
    assert all(isinstance(each, torch.Tensor) for each in (outputs.last_hidden_state, *outputs.attentions))
    assert outputs.last_hidden_state.dtype == torch.float32
    assert isinstance(outputs.hidden_states, tuple)
    assert bits(outputs) == bits(engine(ids.numpy(), mask.numpy(), types.numpy(), **EVERYTHING))


def test_numpy_out_where_only_the_mask_is_torch(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    assert isinstance(engine(IDS, torch.tensor(MASK)).last_hidden_state, np.ndarray)


def test_any_memory_layout(engine: Engine) -> None:
    """Transposed and sliced tensors and arrays, read-only ones too."""
    torch = pytest.importorskip("torch")
    wanted = bits(engine(IDS))
    assert bits(engine(torch.tensor(IDS).T.contiguous().T)) == wanted
    array = np.repeat(np.array(IDS), 2, axis=1)[:, ::2]
    array.flags.writeable = False
    assert bits(engine(array)) == wanted
    assert bits(engine(np.asfortranarray(IDS))) == wanted
    assert bits(engine(np.array(IDS, ">i4"))) == wanted
    assert bits(engine([np.array(row) for row in IDS])) == wanted
    assert bits(engine(tuple(map(tuple, IDS)))) == wanted


def test_a_mask_of_truth_values(engine: Engine) -> None:
    wanted = bits(engine(IDS, MASK))
    assert bits(engine(IDS, np.array(MASK, bool))) == wanted
    assert bits(engine(IDS, [[bool(value) for value in row] for row in MASK])) == wanted


def test_the_arguments_are_not_changed(engine: Engine) -> None:
    arrays = [np.array(values) for values in (IDS, MASK, TYPES)]
    engine(*arrays, **EVERYTHING)
    for array, values in zip(arrays, (IDS, MASK, TYPES), strict=True):
        assert array.tolist() == values


def test_results_belong_to_the_caller(engine: Engine) -> None:
    """No output is a view of memory that the next call reuses."""
    first = engine(IDS, MASK, TYPES, **EVERYTHING)
    before = bits(first)
    engine([[9, 9, 9, 9, 9]] * 4, **EVERYTHING)
    assert bits(first) == before
    first.last_hidden_state[:] = 0
    assert bits(engine(IDS, MASK, TYPES, **EVERYTHING)) == before


def test_distilbert_reads_no_token_types(tiny_checkpoint: Make) -> None:
    """Its tokenizers return none, but callers that treat both families alike may pass them: they are ignored."""
    engine = Engine.from_pretrained(tiny_checkpoint("distilbert", "feature-extraction"))
    assert bits(engine(IDS, MASK, np.array(TYPES) + 5)) == bits(engine(IDS, MASK))


FIELDS = {
    "feature-extraction": {"last_hidden_state": (2, 5, 32), "pooler_output": (2, 32)},
    "fill-mask": {"logits": (2, 5, 256)},
    "text-classification": {"logits": (2, 2)},
    "token-classification": {"logits": (2, 5, 9)},
    "question-answering": {"start_logits": (2, 5), "end_logits": (2, 5)},
    "multiple-choice": {"logits": (1, 2)},
}


@pytest.mark.parametrize("task", TASKS)
def test_fields_and_shapes(tiny_checkpoint: Make, task: str) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("bert", task))
    assert engine.task == task
    ids = [IDS] if task == "multiple-choice" else IDS
    outputs = engine(ids, **EVERYTHING)
    assert {name: value.shape for name, value in engine(ids).to_dict().items()} == FIELDS[task]
    assert [state.shape for state in outputs.hidden_states] == [(2, 5, 32)] * 3
    assert [layer.shape for layer in outputs.attentions] == [(2, 4, 5, 5)] * 2
    for name in FIELDS[task]:
        assert outputs[name].flags.c_contiguous and outputs[name].dtype == np.float32
    assert outputs.logits is None or "logits" in FIELDS[task]


def test_a_missing_field(engine: Engine) -> None:
    outputs = engine(IDS)
    assert outputs.logits is None
    with pytest.raises(KeyError):
        outputs["logits"]


def test_outputs_by_index_as_in_transformers(tiny_checkpoint: Make) -> None:
    outputs = Engine.from_pretrained(tiny_checkpoint("bert", "question-answering"))(IDS, output_hidden_states=True)
    names = ["start_logits", "end_logits", "hidden_states"]
    assert [*outputs] == [*outputs.keys()] == names and len(outputs) == 3
    assert outputs[0] is outputs["start_logits"] is outputs.start_logits
    assert outputs[1:] == outputs.to_tuple()[1:] == (outputs.end_logits, outputs.hidden_states)
    with pytest.raises(IndexError):
        outputs[3]


def test_results_can_be_read_through_dlpack(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    states = engine(IDS).last_hidden_state
    assert torch.from_dlpack(states).numpy().tobytes() == states.tobytes()


COLUMNS = np.array([0, 3, 47, 48, 95, 99], np.int32)
"""Adjacent ones, and both sides of a panel's edge."""


@pytest.mark.parametrize(("backend", "precision"), [("cpu", "fp32"), ("cpu", "int8"), ("reference", "fp64")])
def test_only_the_requested_columns(tiny_checkpoint: Make, backend: str, precision: str) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("bert", "fill-mask"), backend=backend, precision=precision)
    batch, rows = PackedBatch.from_sequences([[1, 2, 3], [4, 5]]), np.array([1, 4], np.int32)
    hidden, logits = engine.encode_with_logits(batch, rows=rows)
    for columns in (COLUMNS, COLUMNS[2:3], np.arange(logits.shape[1])):
        state, some = engine.encode_with_logits(batch, rows=rows, columns=columns)
        assert np.array_equal(some, logits[:, columns])
        assert np.array_equal(state, hidden)
    some = engine.logits(batch, rows=rows, columns=COLUMNS)
    assert np.array_equal(some, engine.trace(batch, rows=rows)["head.1"][:, COLUMNS])


@pytest.mark.parametrize("columns", [[2, 1], [1, 1], [-1, 3], [], [[1]], [10**6]])
def test_columns_that_the_head_does_not_have(tiny_checkpoint: Make, columns: list) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("bert", "fill-mask"))
    with pytest.raises(InputError, match=r"^columns ((must|has).*)\.$"):
        engine.logits(PackedBatch.from_sequences([[1, 2]]), columns=np.array(columns))


def test_logits_need_a_head(tiny_checkpoint: Make) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("distilbert", "feature-extraction"))
    with pytest.raises(InputError, match=r"^This checkpoint has no head for feature-extraction; encode returns .*\.$"):
        engine.logits(PackedBatch.from_sequences([[1, 2]]), columns=np.array([0]))


def test_a_packed_batch_and_the_rows_that_are_read(tiny_checkpoint: Make) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("bert", "text-classification"))
    batch = PackedBatch.from_sequences([[2, 7, 3], [2, 8]])
    assert engine.logits(batch).shape == (2, 2)
    assert engine.encode(batch).shape == (5, 32)
    hidden, logits = engine.encode_with_logits(batch, rows=np.array([1, 2, 4], np.int32))
    assert hidden.shape == (5, 32) and logits.shape == (3, 2)


@pytest.mark.parametrize("task", ["fill-mask", "question-answering", "text-classification"])
def test_encode_logits_and_trace_agree_to_the_bit(tiny_checkpoint: Make, task: str) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("bert", task))
    batch = PackedBatch.from_sequences([[2, 7, 3], [2, 8]])
    hidden, logits = engine.encode_with_logits(batch)
    trace = engine.trace(batch)
    assert hidden.dtype == logits.dtype == np.float32
    assert np.array_equal(hidden, engine.encode(batch))
    assert np.array_equal(hidden, trace[f"layer.{engine.config.num_layers - 1}.output"])
    assert np.array_equal(logits, engine.logits(batch))
    assert np.array_equal(logits, trace[f"head.{len(engine.head.linears) - 1}"])


def test_info_is_plain_and_complete(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "question-answering")
    info = json.loads(json.dumps(Engine.from_pretrained(directory, threads=2).info()))
    assert (info["backend"], info["precision"], info["threads"]) == ("cpu", "fp32", 2)
    assert info["isa"] == cpu.chosen_isa()[0] and info["isa"] in info["detail"]
    assert info["packed_bytes"] > 0 and info["backend_why"] and info["isa_why"]
    wanted = {"task": "question-answering", "layers": 2, "width": 32, "heads": 4, "vocabulary": 256, "positions": 64}
    assert wanted.items() <= info["model"].items()


def test_threads_from_the_environment(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument overrides DISTILFAST_THREADS, which overrides the number of cores."""
    directory = tiny_checkpoint("distilbert", "feature-extraction")
    monkeypatch.setenv("DISTILFAST_THREADS", "3")
    assert Engine.from_pretrained(directory).info()["threads"] == 3
    assert Engine.from_pretrained(directory, threads=1).info()["threads"] == 1
    assert Engine.from_pretrained(directory, threads=np.int64(2)).info()["threads"] == 2
    monkeypatch.setenv("DISTILFAST_THREADS", "")
    assert Engine.from_pretrained(directory).info()["threads"] == cpu.available_cores()


def test_backend_and_isa_from_the_environment(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny_checkpoint("distilbert", "feature-extraction")
    monkeypatch.setenv("DISTILFAST_BACKEND", "reference")
    info = Engine.from_pretrained(directory, precision="fp64").info()
    assert info["backend"] == "reference" and "DISTILFAST_BACKEND" in info["backend_why"]
    monkeypatch.setenv("DISTILFAST_ISA", "ref")
    info = Engine.from_pretrained(directory, backend="cpu").info()
    assert (info["backend"], info["isa"]) == ("cpu", "ref") and "DISTILFAST_ISA" in info["isa_why"]


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_opens_the_checkpoint_again(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """With the same arguments, also from another working directory."""
    directory = tiny_checkpoint("bert", "text-classification")
    monkeypatch.chdir(directory.parent)
    pipe = pipeline("text-classification", directory.name, precision="int8", backend="cpu", threads=3, top_k=None)
    wanted = pipe("a film")
    pickled = pickle.dumps(pipe)
    monkeypatch.chdir("/")
    for copied in (COPIES[how](pipe), pickle.loads(pickled)):
        assert copied("a film") == wanted
        assert copied.tokenizer is copied.engine.tokenizer
        facts = [(info["backend"], info["detail"], info["model"]["task"]) for info in (copied.engine.info(),)]
        assert facts == [("cpu", pipe.engine.info()["detail"], "text-classification")]


def test_a_spawned_process_answers(tiny_checkpoint: Make) -> None:
    pipe = pipeline("text-classification", tiny_checkpoint("bert", "text-classification"), threads=1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert processes.submit(pipe, "a film").result() == pipe("a film")


def test_a_tokenizer_that_is_copied(engine: Engine) -> None:
    text = "The film's end, [MASK]!"
    for how in COPIES.values():
        copied = how(engine.tokenizer)
        assert copied.encode(text) == engine.tokenizer.encode(text) and copied._backend is not engine.tokenizer._backend


def test_threads_of_any_integer_type(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("bert", "feature-extraction")
    assert Engine.from_pretrained(directory, threads=np.int64(2)).info()["threads"] == 2  # type: ignore[arg-type]


def test_warm_up_takes_numpy_integers(engine: Engine) -> None:
    engine.warm_up([(np.int64(2), np.int64(3))])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"^length is 0; a positive integer is needed\.$"):
        engine.warm_up([(1, 0)])


def test_bare_weights_cannot_be_pickled(engine: Engine) -> None:
    from distilfast.weights import load_weights

    assert engine.directory is not None
    bare = Engine(*load_weights(engine.directory, engine.config, engine.task))
    for how in COPIES.values():
        with pytest.raises(InputError, match=r"^This engine was made from bare weights; it cannot be .* copied\.$"):
            how(bare)


def test_bare_weights_have_no_tokenizer(engine: Engine, tiny_checkpoint: Make) -> None:
    from distilfast.weights import load_weights

    weights, head = load_weights(tiny_checkpoint("bert", "feature-extraction"), engine.config, engine.task)
    bare = Engine(weights, head)
    assert bits(bare(IDS)) == bits(engine(IDS))
    with pytest.raises(InputError, match=r"^This engine was made from bare weights; it has no tokeniser\.$"):
        _ = bare.tokenizer
