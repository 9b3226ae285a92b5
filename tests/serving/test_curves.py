"""Cost curves that are kept: a second start measures nothing, and what has changed is measured anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import Engine, cache, pipeline
from distilfast.pipelines.base import Pipeline
from distilfast.serving import curves
from distilfast.serving.batcher import Batcher
from distilfast.serving.cost import ROUNDS, Curve

Make = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DISTILFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of each forward that is run."""
    run: list[list[int]] = []
    logits = Engine.logits

    def note(engine: Engine, batch: Any, **options: Any) -> np.ndarray:
        run.append(np.diff(batch.cu_seqlens).tolist())
        return logits(engine, batch, **options)

    monkeypatch.setattr(Engine, "logits", note)
    return run


@pytest.fixture
def load(tiny_checkpoint: Make) -> Callable[..., Pipeline]:
    def make(seed: int = 0, num_labels: int = 5, **options: Any) -> Pipeline:
        model = tiny_checkpoint("distilbert", "text-classification", num_labels=num_labels, seed=seed)
        return pipeline("text-classification", model, **options)

    return make


Load = Callable[..., Pipeline]


def started(pipe: Pipeline) -> tuple[Curve, str]:
    batcher = Batcher(pipe)
    batcher.close()
    return batcher.curves[pipe.task], batcher.curve_origins[pipe.task]


def test_a_second_start_measures_nothing(store: Path, load: Load, forwards: list[list[int]]) -> None:
    """On the pipeline's own engine, up to the 64 positions that it has; another checkpoint of its shape counts too."""
    first, origin = started(load())
    assert first.tokens == (8, 16, 32, 64)
    for shape in ([8], [16], [16] * 2, [16] * 4, [64]):
        assert forwards.count(shape) >= ROUNDS
    (path,) = store.glob("*.curve")
    assert origin == f"measured, kept in {path}"
    forwards.clear()
    assert started(load()) == (first, "cache")
    assert started(load(seed=1)) == (first, "cache")
    assert forwards == []


@pytest.mark.parametrize(
    ("option", "value"), [("precision", "int8"), ("threads", 3), ("backend", "reference"), ("num_labels", 7)]
)
def test_another_way_of_computing_is_measured(
    store: Path, load: Load, forwards: list[list[int]], option: str, value: Any
) -> None:
    started(load(threads=1))
    forwards.clear()
    other = {"threads": 1} | {option: value} | ({"precision": "fp64", "threads": None} if option == "backend" else {})
    _, origin = started(load(**other))
    assert origin.startswith("measured, kept")
    assert forwards
    assert started(load(threads=1))[1] == "cache"


@pytest.mark.parametrize("fact", ["processor", "version", "isa"])
def test_another_machine_or_version_is_measured(
    store: Path, load: Load, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(load())
    if fact == "processor":
        monkeypatch.setattr(curves, "processor", lambda: "another")
    elif fact == "version":
        monkeypatch.setattr(curves, "__version__", "0.0.0")
    else:
        monkeypatch.setenv("DISTILFAST_ISA", "ref")
    assert started(load())[1].startswith("measured, kept")


def damaged(text: str, how: str) -> str:
    if how == "truncated":
        return text[: len(text) // 2]
    stored = json.loads(text)
    if how == "changed":
        stored["note"]["seconds"][0] /= 1000
    elif how == "no curve":
        return json.dumps(stored | {"note": {"tokens": [8]}, "crc": cache._note_crc({"tokens": [8]})})
    return json.dumps(stored) if how == "changed" else how


@pytest.mark.parametrize("how", ["truncated", "changed", "no curve", "[]", "\0\0\0", ""])
def test_a_damaged_file_is_measured_and_written_again(store: Path, load: Load, how: str) -> None:
    started(load())
    (path,) = store.glob("*.curve")
    path.write_text(damaged(path.read_text(), how))
    assert started(load())[1] == f"measured, kept in {path}"
    assert started(load())[1] == "cache"


def test_a_file_of_another_user_is_not_read(store: Path, load: Load) -> None:
    started(load())
    (path,) = store.glob("*.curve")
    path.chmod(0o666)
    assert started(load())[1].startswith("measured")


def test_without_a_cache_each_start_measures(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFAST_CACHE", "off")
    assert [started(load())[1] for _ in range(2)] == ["measured, not kept, cache off"] * 2


def test_a_full_disk_is_no_error(store: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "rename", full)
    assert started(load())[1] == "measured, not kept, cache not writable: No space left on device"
    assert list(store.glob(".*")) == []


def test_few_are_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_NOTES", 3)
    for i in range(5):
        assert cache.keep_note("curve", {"i": i}, i).startswith("kept in")
        os.utime(next(path for path in store.glob("*.curve") if f'"note": {i}' in path.read_text()), ns=(i, i))
    assert [cache.read_note("curve", {"i": i}) for i in range(5)] == [None, None, 2, 3, 4]
