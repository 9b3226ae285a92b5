"""Numbers that kernels use as addresses: whatever the caller passes, they are read as they are or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

from distilfast import Engine, InputError, PackedBatch, _cpu
from distilfast.integers import int32, mask

Make = Callable[..., Path]

IDS = [1, 2, 3, 4, 5, 6, 7, 8]
COLUMNS = 256  # of the head: the vocabulary


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Make) -> Engine:
    """BERT, whose three tables have 256, 64 and 2 rows."""
    return Engine.from_pretrained(tiny_checkpoint("bert", "fill-mask"), backend="cpu", threads=1)


FORMS: dict[str, Callable[[list[int]], Any]] = {
    "a list": list,
    "a tuple": tuple,
    "int8": lambda x: np.array(x, np.int8),
    "uint16": lambda x: np.array(x, np.uint16),
    "int64": lambda x: np.array(x, np.int64),
    "uint64": lambda x: np.array(x, np.uint64),
    "big-endian": lambda x: np.array(x, ">i4"),
    "every second one": lambda x: np.repeat(np.array(x, np.int32), 2)[::2],
    "backwards in memory": lambda x: np.array(x[::-1], np.int32)[::-1],
    "not aligned": lambda x: np.frombuffer(b"\0" + np.array(x, np.int32).tobytes(), np.int32, offset=1),
    "read-only": lambda x: np.frombuffer(np.array(x, np.int32).tobytes(), np.int32),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_integers(engine: Engine, form: str) -> None:
    made = FORMS[form]
    arrays = [[*IDS], [*range(5), *range(3)], [0, 5, 8], [0] * 4 + [1] * 4]
    wanted = engine.logits(
        PackedBatch(*(np.array(array, np.int32) for array in arrays)),
        rows=np.array([1, 6], np.int32),
        columns=np.array([3, 5, 100], np.int32),
    )
    batch = PackedBatch(*(made(array) for array in arrays))
    assert all(array.dtype == np.int32 and array.flags.aligned for array in (batch.input_ids, batch.cu_seqlens))
    got = engine.logits(batch, rows=made([1, 6]), columns=made([3, 5, 100]))
    assert got.tobytes() == wanted.tobytes()


def test_int32_is_not_copied() -> None:
    ids = np.arange(3, dtype=np.int32)
    assert int32("ids", ids) is ids


ENDS = {
    "unsigned numbers whose differences wrap": np.array([0, 60000, 8], np.uint16),
    "int32 whose differences wrap": np.array([0, 2**31 - 1, -2, 8], np.int32),
    "a falling one": [0, 9, 8],
    "one alone": [8],
    "none": [],
}


@pytest.mark.parametrize("case", ENDS)
def test_cu_seqlens(engine: Engine, case: str) -> None:
    batch = PackedBatch(IDS, range(8), ENDS[case])
    raises_one_sentence(InputError, "cu_seqlens must be strictly increasing from 0", lambda: engine.encode(batch))


SELECTIONS = {
    "unsigned": (np.array([60000, 3], np.uint16), "must"),
    "int32 that wraps": (np.array([2**31 - 1, -(2**31)], np.int32), "must"),
    "beyond 32 bits": ([3, 2**32 + 5], "has 4294967301, which is no 32-bit integer"),
    "far below 0": ([-(2**40), 3], "has -1099511627776, which is no 32-bit integer"),
    "floats": ([1.0, 2.0], "has dtype float64"),
    "truth values": ([False, True], "has dtype bool"),
    "a table": ([[1, 2]], "has 2 dimensions"),
    "a number": (3, "has 0 dimensions"),
    "ragged": ([[1], [2, 3]], "is ragged"),
}


@pytest.mark.parametrize("case", SELECTIONS)
@pytest.mark.parametrize("name", ["rows", "columns"])
def test_rows_and_columns(engine: Engine, name: str, case: str) -> None:
    values, what = SELECTIONS[case]
    batch = PackedBatch.from_sequences([IDS])
    arguments: dict[str, Any] = {name: values}
    raises_one_sentence(InputError, f"{name} {what}", lambda: engine.logits(batch, **arguments))


@pytest.mark.parametrize("name", ["input_ids", "positions", "cu_seqlens", "token_types"])
@pytest.mark.parametrize("values", ["no numbers", [0.0, 1.0], [[0, 1]], [0, 2**31], [True, False], ["0"], np.array(3)])
def test_fields_of_a_packed_batch(name: str, values: Any) -> None:
    fields: dict[str, Any] = {"input_ids": [1], "positions": [0], "cu_seqlens": [0, 1]} | {name: values}
    raises_one_sentence(InputError, name, lambda: PackedBatch(**fields))


def test_something_else_than_a_packed_batch(engine: Engine) -> None:
    not_a_batch: Any = [[1, 2]]
    raises_one_sentence(InputError, "a PackedBatch is needed", lambda: engine.encode(not_a_batch))


GOOD = {
    "ids": [1, 2, 255],
    "positions": [0, 1, 63],
    "token_types": [0, 1, 1],
    "cu_seqlens": [0, 1, 3],
    "rows": [0, 2],
    "columns": [0, COLUMNS - 1],
}
BAD: list[tuple[str, Any]] = [
    ("ids", [1, 2, 256]),
    ("ids", [1, -1, 3]),
    ("ids", [1, 2]),
    ("ids", [[1, 2, 3]]),
    ("ids", []),
    ("positions", [0, 1, 64]),
    ("positions", [0, 1, -1]),
    ("positions", [0, 1]),
    ("token_types", [0, 1, 2]),
    ("token_types", [0, 1]),
    ("cu_seqlens", []),
    ("cu_seqlens", [3]),
    ("cu_seqlens", [0, 4]),
    ("cu_seqlens", [0, 2]),
    ("cu_seqlens", [1, 3]),
    ("cu_seqlens", [0, 5, 3]),
    ("cu_seqlens", [0, 2**31 - 1, -2, 3]),
    ("rows", [0, 3]),
    ("rows", [-1, 2]),
    ("rows", [2, 0]),
    ("rows", [1, 1]),
    ("columns", [0, COLUMNS]),
    ("columns", [-1, 0]),
    ("columns", [1, 1]),
]


def forward_of(engine: Engine, arguments: dict[str, list[int]]) -> Any:
    """The extension's own forward, without the engine's checks."""
    arrays = {name: np.array(values, np.int32) for name, values in arguments.items()}
    return engine._backend._encoder.forward(**arrays, hidden=True, trace=None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "values"), BAD)
def test_the_extension_checks_again(engine: Engine, name: str, values: list[int]) -> None:
    hidden, logits = forward_of(engine, GOOD)
    assert hidden.shape == (3, 32) and logits.shape == (2, 2)
    with pytest.raises(ValueError, match=name):
        forward_of(engine, GOOD | {name: values})


def test_the_extension_takes_no_other_integers(engine: Engine) -> None:
    arrays = {name: np.array(values, np.int64) for name, values in GOOD.items()}
    with pytest.raises(TypeError):
        engine._backend._encoder.forward(**arrays, hidden=True, trace=None)  # type: ignore[attr-defined]


def test_token_types_of_a_model_without_them(tiny_checkpoint: Make) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("distilbert", "fill-mask"), backend="cpu")
    batch = PackedBatch.from_sequences([[1, 2, 3]], [[0, 0, 0]])
    raises_one_sentence(InputError, "the model has no table of them", lambda: engine.encode(batch))
    with pytest.raises(ValueError, match="token_types"):
        forward_of(engine, GOOD)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def embed(**changed: Any) -> np.ndarray:
    tables = {"word": floats(5, 4), "position": floats(3, 4), "token_type": floats(2, 4)}
    numbers = {"ids": ints(4), "positions": ints(2), "token_types": ints(1)}
    norm = {"weight": floats(4), "bias": floats(4)}
    return _cpu.embed(**(tables | numbers | norm | changed), eps=1e-5, isa="ref")


def linear(k: int = 64, **changed: Any) -> np.ndarray:
    outliers = np.arange(_cpu.outlier_channels(k), dtype=np.int32)
    arguments = {"weight": floats(3, k), "bias": floats(3), "channel_shift": floats(k), "outlier_channels": outliers}
    return _cpu.Linear(**(arguments | changed), isa="ref", precision="int8")(floats(2, k))


def attention(**changed: Any) -> tuple[np.ndarray, np.ndarray]:
    arguments = {"qkv": floats(3, 24), "cu_seqlens": ints(0, 1, 3), "heads": 2}
    return _cpu.attention(**(arguments | changed), isa="ref")


OPERATIONS = [
    (embed, {"ids": ints(5)}),
    (embed, {"ids": ints(-1)}),
    (embed, {"positions": ints(3)}),
    (embed, {"positions": ints(0, 1)}),
    (embed, {"token_types": ints(2)}),
    (embed, {"token_type": None}),
    (embed, {"word": floats(5, 3)}),
    (embed, {"bias": floats(3)}),
    (embed, {"threads": 0}),
    (linear, {"outlier_channels": np.full(_cpu.outlier_channels(64), 64, np.int32)}),
    (linear, {"channel_shift": floats(63)}),
    (linear, {"weight": floats(0, 64), "bias": floats(0)}),
    (linear, {"threads": -1}),
    (attention, {"cu_seqlens": ints(0, 1, 4)}),
    (attention, {"cu_seqlens": ints(0, 4, 3)}),
    (attention, {"cu_seqlens": ints()}),
    (attention, {"heads": 0}),
    (attention, {"heads": -2}),
    (attention, {"heads": 3}),
    (attention, {"threads": 0}),
]


@pytest.mark.parametrize(("operation", "changed"), OPERATIONS)
def test_single_operations(operation: Callable[..., Any], changed: dict[str, Any]) -> None:
    operation()
    with pytest.raises(ValueError, match=r"\.$"):
        operation(**changed)


@pytest.mark.parametrize("dtype", [bool, np.uint64, ">i2", np.float16, np.float64])
def test_masks_of_any_type(dtype: Any) -> None:
    assert mask("attention_mask", np.array([[1, 0]], dtype)).tolist() == [[True, False]]


def test_torch_tensors(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    ids = torch.tensor([[1, 2, 3]])
    wanted = engine(ids, torch.tensor([[1, 1, 0]])).logits
    for dtype in (torch.bool, torch.float32, torch.bfloat16):
        assert torch.equal(engine(ids, torch.tensor([[1, 1, 0]]).to(dtype)).logits, wanted)
    raises_one_sentence(InputError, "on the meta device", lambda: engine(ids.to("meta")))
    raises_one_sentence(InputError, "attention_mask is a tensor on", lambda: engine(ids, ids.to("meta")))
    raises_one_sentence(InputError, "input_ids is a tensor of layout", lambda: engine(ids.to_sparse()))


def test_only_token_types_can_be_left_out() -> None:
    for name in ("input_ids", "positions", "cu_seqlens"):
        fields: dict[str, Any] = {"input_ids": [1], "positions": [0], "cu_seqlens": [0, 1]} | {name: None}
        raises_one_sentence(InputError, name, lambda fields=fields: PackedBatch(**fields))
    assert PackedBatch([1], [0], [0, 1]).token_types is None
