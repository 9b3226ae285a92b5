"""Bad input: one sentence, the right class, and an engine that answers as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

from distilfast import BackendError, ConfigError, Engine, InputError, PackedBatch, WeightsError
from distilfast.synthetic import write_checkpoint

Make = Callable[..., Path]

LONG = {"max_position_embeddings": 512}
GOOD = [[2, 7, 8, 3], [2, 9, 3, 0]]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Make) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint("bert", "feature-extraction", config=LONG))


@pytest.fixture
def unchanged(engine: Engine) -> Any:
    """The engine; its answers must have the same bits before and after the test."""
    before = engine(GOOD, output_attentions=True)
    yield engine
    after = engine(GOOD, output_attentions=True)
    assert after.last_hidden_state.tobytes() == before.last_hidden_state.tobytes()
    assert after.pooler_output.tobytes() == before.pooler_output.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(after.attentions, before.attentions, strict=True))


BAD_IDS = {
    "empty list": ([], "input_ids is empty"),
    "empty row": ([[]], "input_ids is empty"),
    "empty array": (np.zeros((0, 4), int), "input_ids is empty"),
    "no list at all": (5, "input_ids has 0 dimension(s)"),
    "one row without its batch": ([1, 2], "feature-extraction needs [batch, length]"),
    "three dimensions": ([[[1, 2]]], "feature-extraction needs [batch, length]"),
    "none": (None, "input_ids has dtype object"),
    "ragged": ([[1, 2], [3]], "input_ids is ragged"),
    "ragged deeper": ([[1, [2]], [3, 4]], "input_ids is ragged"),
    "floats": ([[1.0, 2.0]], "input_ids has dtype float64; integers are needed"),
    "nan": ([[float("nan")]], "integers are needed"),
    "text": ([["a", "b"]], "integers are needed"),
    "a string": ("What a film.", "integers are needed"),
    "truth values": ([[True, False]], "input_ids has dtype bool"),
    "objects": ([[None, 1]], "input_ids has dtype object"),
    "out of range": ([[1, 256]], "Row 0 of input_ids has 256; the model's table holds 0 to 255"),
    "far out of range": ([[1, 2**32 + 1]], "input_ids has 4294967297"),
    "beyond int64": (np.array([[1, 2**63]], np.uint64), "input_ids has 9223372036854775808"),
    "beyond any integer": ([[1, 2**70]], "integers are needed"),
    "negative": ([[1, -1]], "input_ids has -1"),
    "negative under the padding too": ([[1, -100]], "input_ids has -100"),
    "513 tokens": ([[1] * 513], "Row 0 has 513 tokens; the model has 512 positions"),
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_ids(unchanged: Engine, case: str) -> None:
    ids, what = BAD_IDS[case]
    raises_one_sentence(InputError, what, lambda: unchanged(ids))


BAD_MASKS = {
    "all zeros": (np.zeros((2, 4), int), "attention_mask row 0 is all zeros"),
    "a row of zeros": ([[1, 1, 1, 1], [0, 0, 0, 0]], "attention_mask row 1 is all zeros"),
    "another shape": ([[1, 1, 1]], "attention_mask has shape (1, 3); input_ids has (2, 4)"),
    "another length": (np.ones((2, 5), int), "attention_mask has shape (2, 5)"),
    "one dimension": ([1, 1, 1, 1], "attention_mask has shape (4,)"),
    "ragged": ([[1, 1, 1, 1], [1]], "attention_mask is ragged"),
    "floats between 0 and 1": (np.full((2, 4), 0.5), "attention_mask has 0.5; a mask of floats holds 0 and 1 alone"),
    "nan": (np.full((2, 4), np.nan), "attention_mask has nan"),
    "objects": (np.ones((2, 4), object), "attention_mask has dtype object"),
    "empty": ([], "attention_mask is empty"),
    "text": ([["1"] * 4] * 2, "integers are needed"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_masks(unchanged: Engine, case: str) -> None:
    mask, what = BAD_MASKS[case]
    raises_one_sentence(InputError, what, lambda: unchanged(GOOD, mask))


BAD_TYPES = {
    "out of range": ([[0, 0, 0, 2], [0, 0, 0, 0]], "token_type_ids has 2; the model's table holds 0 to 1"),
    "far out of range": ([[0, 0, 0, 2**32], [0, 0, 0, 0]], "token_type_ids has 4294967296"),
    "negative": ([[0, 0, 0, -1], [0, 0, 0, 0]], "token_type_ids has -1"),
    "another shape": ([[0, 0, 0]], "token_type_ids has shape (1, 3)"),
    "floats": (np.zeros((2, 4)), "token_type_ids has dtype float64"),
    "truth values": (np.zeros((2, 4), bool), "token_type_ids has dtype bool"),
    "ragged": ([[0], [0, 0]], "token_type_ids is ragged"),
}


@pytest.mark.parametrize("case", BAD_TYPES)
def test_token_types(unchanged: Engine, case: str) -> None:
    types, what = BAD_TYPES[case]
    raises_one_sentence(InputError, what, lambda: unchanged(GOOD, None, types))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "bool", "complex64"])
def test_tensors_of_another_type(unchanged: Engine, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, 4).to(getattr(torch, dtype))
    raises_one_sentence(InputError, "integers are needed", lambda: unchanged(tensor))


def test_multiple_choice_needs_three_dimensions(tiny_checkpoint: Make) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("distilbert", "multiple-choice"))
    raises_one_sentence(InputError, "needs [batch, choices, length]", lambda: engine(GOOD))


BAD_BATCHES = {
    "a gap at the beginning": {"cu_seqlens": [1, 3]},
    "tokens past the end": {"cu_seqlens": [0, 2]},
    "more than there are": {"cu_seqlens": [0, 4]},
    "an empty sequence": {"cu_seqlens": [0, 2, 2, 3]},
    "falling": {"cu_seqlens": [0, 4, 3]},
    "an id out of range": {"input_ids": [1, 2, 256]},
    "a position out of range": {"positions": [0, 1, 512]},
    "a negative position": {"positions": [0, -1, 2]},
    "a type out of range": {"token_types": [0, 1, 2]},
    "a type too few": {"token_types": [0, 1]},
    "a position too few": {"positions": [0, 1]},
    "no token at all": {"input_ids": [], "positions": [], "cu_seqlens": [0], "token_types": []},
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_packed_batches(unchanged: Engine, case: str) -> None:
    """Values with which the kernels would read outside their tables."""
    good = {"input_ids": [1, 2, 3], "positions": [0, 1, 2], "cu_seqlens": [0, 3], "token_types": [0, 0, 1]}
    batch = PackedBatch(**{name: np.array(values, np.int32) for name, values in (good | BAD_BATCHES[case]).items()})
    raises_one_sentence(InputError, "", lambda: unchanged.encode(batch))


IN_A_BATCH = {
    "too long": ([[1], [1, 2], [1] * 513], None, "Sequence 2 has 513 tokens; the model has 512 positions"),
    "an id": ([[1], [1, 2, 256], [300]], None, "Sequence 1 of input_ids has 256; the model's table holds 0 to 255"),
    "a type": ([[1], [2]], [[1], [2]], "Sequence 1 of token_type_ids has 2; the model's table holds 0 to 1"),
}


@pytest.mark.parametrize("case", IN_A_BATCH)
def test_the_bad_sequence_is_named(unchanged: Engine, case: str) -> None:
    ids, types, what = IN_A_BATCH[case]
    batch = PackedBatch.from_sequences(ids, types)
    raises_one_sentence(InputError, what, lambda: unchanged.encode(batch))


def test_the_bad_row_is_named(unchanged: Engine, tiny_checkpoint: Make) -> None:
    raises_one_sentence(InputError, "Row 1 of input_ids has 300", lambda: unchanged([[1, 2], [3, 300]]))
    long = np.ones((3, 600), int)
    mask = np.arange(600) < np.array([[2], [512], [513]])
    raises_one_sentence(InputError, "Row 2 has 513 tokens; the model has 512", lambda: unchanged(long, mask))
    choices = Engine.from_pretrained(tiny_checkpoint("distilbert", "multiple-choice"))
    raises_one_sentence(InputError, "Row 0, choice 1 of input_ids has 300", lambda: choices([[[1, 2], [3, 300]]]))
    long, mask = np.ones((2, 2, 70), int), np.ones((2, 2, 70), int)
    mask[:, :, 64:] = 0
    mask[1, 1, 66] = 1
    raises_one_sentence(InputError, "Row 1, choice 1 has 67 tokens; the model has 64", lambda: choices(long, mask))
    mask[1, 0] = 0
    raises_one_sentence(InputError, "Row 1, choice 0 has an attention_mask of zeros", lambda: choices(long, mask))


BAD_ROWS = {"beyond the end": [1, 3], "negative": [-1, 1], "not rising": [2, 1], "twice": [1, 1]}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows(unchanged: Engine, case: str) -> None:
    batch = PackedBatch.from_sequences([[1, 2, 3]])
    rows = np.array(BAD_ROWS[case], np.int32)
    raises_one_sentence(InputError, "rows", lambda: unchanged.trace(batch, rows=rows))


LOADS = {
    "unknown backend": ({"backend": "tpu"}, BackendError, "backend 'tpu' is not known"),
    "unknown precision": ({"precision": "fp8"}, BackendError, "precision 'fp8' is not available on backend cpu"),
    "fp64 on the cpu": ({"precision": "fp64"}, BackendError, "precision 'fp64' is not available on backend cpu"),
    "fp32 on the reference": ({"backend": "reference"}, BackendError, "it has fp64"),
    "unknown task": ({"task": "translation"}, InputError, "task 'translation' is not known"),
    "a head that is not stored": ({"task": "question-answering"}, WeightsError, "no complete question-answering head"),
    "no threads": ({"threads": 0}, InputError, "threads is 0; a positive integer is needed"),
    "fewer than none": ({"threads": -1}, InputError, "threads is -1; a positive integer is needed"),
    "threads that are a truth value": ({"threads": True}, InputError, "threads is True; a positive integer is needed"),
    "half a thread": ({"threads": 1.5}, InputError, "threads is 1.5; a positive integer is needed"),
}


@pytest.mark.parametrize("case", LOADS)
def test_loading(unchanged: Engine, case: str) -> None:
    options, error, what = LOADS[case]
    raises_one_sentence(error, what, lambda: Engine.from_pretrained(unchanged.directory, **options))


ENVIRONMENT = {
    "threads that are no number": ("THREADS", "abc", InputError, "DISTILFAST_THREADS is 'abc'"),
    "no threads": ("THREADS", "0", InputError, "DISTILFAST_THREADS is '0'"),
    "negative threads": ("THREADS", "-2", InputError, "DISTILFAST_THREADS is '-2'"),
    "a digit that is no number": ("THREADS", "²", InputError, "DISTILFAST_THREADS is '²'"),
    "unknown ISA": ("ISA", "mmx", BackendError, "DISTILFAST_ISA 'mmx' is not known"),
    "unknown backend": ("BACKEND", "tpu", BackendError, "backend 'tpu' is not known"),
}


@pytest.mark.parametrize("case", ENVIRONMENT)
def test_environment(unchanged: Engine, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, value, error, what = ENVIRONMENT[case]
    monkeypatch.setenv(f"DISTILFAST_{name}", value)
    raises_one_sentence(error, what, lambda: Engine.from_pretrained(unchanged.directory))


@pytest.mark.parametrize("who", ["processor", "operating system, which does not grant the tiles"])
def test_an_isa_that_the_machine_lacks(unchanged: Engine, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setenv("DISTILFAST_ISA", "avx9")
    why = f"is not supported by this {who}"
    monkeypatch.setattr("distilfast.backends.cpu.missing", lambda: {"avx9": why, "ref": None})
    what = f"DISTILFAST_ISA 'avx9' {why}"
    raises_one_sentence(BackendError, what, lambda: Engine.from_pretrained(unchanged.directory))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    directory = write_checkpoint(tmp_path, task="feature-extraction", config={"dim": 8, "n_heads": 2, "n_layers": 1})
    file = directory / "model.safetensors"
    with file.open("r+b") as raw:  # the last number of the last tensor
        raw.seek(-4, 2)
        raw.write(np.float32(value).tobytes())
    raises_one_sentence(WeightsError, "NaN or inf", lambda: Engine.from_pretrained(directory))


def test_no_checkpoint(tmp_path: Path) -> None:
    raises_one_sentence(ConfigError, "config.json", lambda: Engine.from_pretrained(tmp_path))
