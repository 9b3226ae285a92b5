"""Small labelled files in each data set's own layout, and checkpoints that can be evaluated on them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glue_files import FILES, NAMES, glue_rows, write_glue
from safetensors.numpy import load_file, save_file

from distilfast import Engine
from distilfast.evaluation.sequences import Ids, head_outputs
from distilfast.tokenizer import Text


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """The models that transformers runs are tiny here: a second thread would not help."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glue_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight tasks in GLUE's layout, 24 lines each, with malformed ones among them."""
    root = tmp_path_factory.mktemp("glue")
    for task in FILES:
        write_glue(root, task, glue_rows(task))
    return root


@pytest.fixture(scope="session")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Sequence[Text]], Path]:
    """``balanced(checkpoint, texts)``: a copy whose bias makes all labels about equally likely on ``texts``.

    Random weights would give all texts the same answer, and any test of answers would pass.
    """

    def make(directory: Path, texts: Sequence[Text]) -> Path:
        engine = Engine.from_pretrained(directory, threads=1)
        encodings = engine.tokenizer.encode_batch(texts, truncation=True)
        outputs = head_outputs(engine, [Ids(each.ids, each.type_ids) for each in encodings])
        copy = tmp_path_factory.mktemp("balanced") / directory.name
        shutil.copytree(directory, copy)
        tensors = load_file(copy / "model.safetensors")
        tensors["classifier.bias"] = tensors["classifier.bias"] - np.vstack(outputs).mean(axis=0)
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        return copy

    return make


@pytest.fixture(scope="session")
def glue_checkpoint(
    tiny_checkpoint: Callable[..., Path], balanced: Callable[[Path, Sequence[Text]], Path]
) -> Callable[..., Path]:
    """``glue_checkpoint(task, labels=…, model_type=…)``: labels named as in NAMES unless given."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(task: str, labels: Sequence[str] | None = None, model_type: str = "distilbert") -> Path:
        names = tuple(labels or NAMES[task])
        if (names, model_type) not in made:
            id2label = {str(i): label for i, label in enumerate(names)}
            directory = tiny_checkpoint(model_type, "text-classification", config={"id2label": id2label}, seed=3)
            made[names, model_type] = balanced(directory, [(a, b) for a, b, _ in glue_rows(task)])
        return made[names, model_type]

    return make


@pytest.fixture
def squad_file(tmp_path: Path) -> Callable[..., Path]:
    """``squad_file((context, question, answers), …)``: a file in SQuAD's format."""

    def write(*questions: tuple[str, str, list[str]]) -> Path:
        paragraphs = [
            {
                "context": context,
                "qas": [
                    {
                        "id": str(i),
                        "question": question,
                        "answers": [{"text": a, "answer_start": context.find(a)} for a in answers],
                    }
                ],
            }
            for i, (context, question, answers) in enumerate(questions)
        ]
        path = tmp_path / "squad.json"
        path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
        return path

    return write
