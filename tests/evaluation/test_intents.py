"""Intents by nearest neighbour, with a trained encoder on real requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distilfast import Engine
from distilfast.errors import InputError
from distilfast.evaluation import evaluate, intents

Make = Callable[..., Path]


def test_nearest_against_plain_loops() -> None:
    rng = np.random.default_rng(0)
    queries, neighbours = rng.normal(size=(300, 5)), rng.normal(size=(40, 5))
    wanted = [max(range(40), key=lambda j: float(query @ neighbours[j])) for query in queries]
    assert intents.nearest(queries, neighbours).tolist() == wanted


def test_centroids_are_normalised_means() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    means = intents.centroids(vectors, np.array([0, 1, 0]))
    np.testing.assert_allclose(means, [[1 / np.sqrt(5), 2 / np.sqrt(5)], [0.0, 1.0]])


def test_the_shared_data(data_directory: Path) -> None:
    """They have the sizes that the papers state."""
    banking = intents.read_banking77(data_directory / "banking77")
    assert (len(banking.neighbours), len(banking.queries), banking.out_of_scope) == (10003, 3080, 0)
    assert len({request.intent for request in banking.neighbours}) == 77
    clinc = intents.read_clinc150(data_directory / "clinc150")
    assert (len(clinc.neighbours), len(clinc.queries), clinc.out_of_scope) == (15000, 4500, 1000)
    assert len({request.intent for request in clinc.queries}) == 150
    assert intents.read_clinc150(data_directory / "clinc150" / "data_full.json") == clinc


@pytest.mark.parametrize(("dataset", "classes"), [("banking77", 77), ("clinc150", 150)])
def test_a_trained_encoder_finds_the_intent(minilm: Path, data_directory: Path, dataset: str, classes: int) -> None:
    """With some two neighbours for each intent more than half are right; chance is about 1 %."""
    engine = Engine.from_pretrained(minilm, task="feature-extraction")
    result = evaluate(engine, dataset, data_directory / dataset, limit=2 * classes)
    assert result.metrics["nearest_neighbour"] > 50
    assert result.metrics["nearest_centroid"] > 50
    assert result.counts["neighbours"] == result.counts["queries"] == 2 * classes
    assert result.counts["intents"] >= classes - 1  # evenly spaced requests may miss one intent
    assert any("1000 out-of-scope queries" in note for note in result.notes) == (dataset == "clinc150")


def test_the_reference_agrees(minilm: Path, data_directory: Path) -> None:
    options = {"limit": 12}
    fast = evaluate(minilm, "banking77", data_directory / "banking77", **options)
    truth = evaluate(
        minilm, "banking77", data_directory / "banking77", backend="reference", precision="fp64", **options
    )
    assert fast.predictions == truth.predictions
    assert (fast.precision, truth.precision) == ("fp32", "fp64")


def test_a_request_is_its_own_neighbour(tiny_checkpoint: Make, tmp_path: Path) -> None:
    rows = "".join(f'"{word}, {word}",{word}\r\n' for word in ("one", "two", "three"))
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_bytes(f"text,category\r\n{rows}".encode())
    result = evaluate(tiny_checkpoint("bert", "feature-extraction"), "banking77", tmp_path)
    assert result.metrics == {"nearest_neighbour": 100.0, "nearest_centroid": 100.0}
    assert result.predictions == ("one", "two", "three")


def test_parts_without_an_intent_are_left_out(tmp_path: Path) -> None:
    parts = {"train": [["a", "x"]], "test": [["b", "x"]], "oos_test": [["c", "oos"]], "oos_train": [["d", "oos"]]}
    (tmp_path / "data_full.json").write_text(json.dumps(parts))
    data = intents.read_clinc150(tmp_path)
    assert data == intents.Data([intents.Request("a", "x")], [intents.Request("b", "x")], 1)


@pytest.mark.parametrize("content", ["", "text,category\n", "question,answer\na,b\n", "text,category\na,b,c\n"])
def test_an_unusable_csv_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(InputError, match="is not a CSV file with the columns text and category"):
        intents.read_banking77(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"train": [["a", "x"]]}', '{"train": [["a"]], "test": []}'])
def test_unusable_json_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "data_full.json").write_text(content)
    with pytest.raises(InputError, match="is not JSON in CLINC150's format"):
        intents.read_clinc150(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    for read in intents.DATA.values():
        with pytest.raises(InputError, match="is not readable text"):
            read(tmp_path)
