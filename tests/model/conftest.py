"""What the comparisons need: forced instruction sets, real sentences, full-size checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from isas import isas

from distilfast import Engine
from distilfast.synthetic import write_checkpoint


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set with functions of its own in fp32, forced by DISTILFAST_ISA for whatever a test loads."""
    if request.param == "amx_simulated":
        request.getfixturevalue("amx_simulated")
    monkeypatch.setenv("DISTILFAST_ISA", request.param)
    return str(request.param)


@pytest.fixture
def forced_engine(isa: str) -> Callable[..., Engine]:
    """``Engine.from_pretrained``, with a check that the forced instruction set runs."""

    def load(directory: Path, **options: object) -> Engine:
        engine = Engine.from_pretrained(directory, **options)  # type: ignore[arg-type]
        assert engine.info()["isa"] == isa
        return engine

    return load


@pytest.fixture(scope="session")
def full_checkpoint(tmp_path_factory: pytest.TempPathFactory, data_directory: Path) -> Iterator[Callable[[str], Path]]:
    """``full_checkpoint(task)``: DistilBERT-base-cased in full size with the real vocabulary, 260 MB, written once."""
    root = tmp_path_factory.mktemp("full")

    def make(task: str) -> Path:
        if not (root / task).exists():
            labels = 77 if task == "text-classification" else None  # as many as BANKING77 has
            write_checkpoint(root / task, task=task, num_labels=labels, vocabulary=data_directory / "vocab-cased")
        return root / task

    yield make
    shutil.rmtree(root)
