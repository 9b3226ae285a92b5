"""Intents by the nearest neighbour: how much of an encoder's quality a precision keeps.

Each request of the test set takes the intent of the training request whose vector is nearest by cosine (k = 1), or of
the intent whose mean vector is nearest. Vectors are normalised, and otherwise as sentence-transformers makes them
(Reimers and Gurevych, arXiv 1908.10084). Data: Casanueva et al., BANKING77, arXiv 2003.04807; Larson et al., CLINC150,
arXiv 1909.02027.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation import metrics
from distilfast.evaluation.result import Scores
from distilfast.evaluation.sequences import Progress, subset
from distilfast.pipelines.feature_extraction import FeatureExtractionPipeline

GROUP = 256
"""Texts between two steps of the progress, and queries compared at once."""


class Request(NamedTuple):
    """A text and its intent."""

    text: str
    intent: str


class Data(NamedTuple):
    """Labelled neighbours and queries, and how many out-of-scope queries the data has besides."""

    neighbours: list[Request]
    queries: list[Request]
    out_of_scope: int = 0


def evaluate(engine: Engine, name: str, path: Path, limit: int | None, progress: Progress) -> Scores:
    """Accuracy by the nearest neighbour and by the nearest mean of an intent; see ``DATA`` for ``name``.

    ``limit`` holds for neighbours and for queries, so a limited figure is not that of the whole data. Raises
    InputError.
    """
    data = DATA[name](path)
    neighbours, queries = subset(data.neighbours, limit), subset(data.queries, limit)
    vectors = _embed(engine, [request.text for request in (*neighbours, *queries)], progress)
    around, asked = np.split(vectors, [len(neighbours)])
    intents, numbers = np.unique([request.intent for request in neighbours], return_inverse=True)
    means = centroids(around, numbers)
    wanted = [request.intent for request in queries]
    nearest_one = intents[numbers[nearest(asked, around)]]
    scores = {
        "nearest_neighbour": metrics.accuracy(nearest_one, wanted),
        "nearest_centroid": metrics.accuracy(intents[nearest(asked, means)], wanted),
    }
    counts = {"neighbours": len(neighbours), "queries": len(queries), "intents": len(intents)}
    left_out = f"The {data.out_of_scope} out-of-scope queries have no neighbour to find and are left out."
    notes = (left_out,) if data.out_of_scope else ()
    return Scores(metrics.percent(scores), counts, notes, tuple(nearest_one.tolist()))


def _embed(engine: Engine, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """[N, D], each row of length 1."""
    pipe = FeatureExtractionPipeline(engine)
    vectors = []
    for begin in range(0, len(texts), GROUP):
        vectors.append(pipe.embed(texts[begin : begin + GROUP], normalize=True))
        progress(min(begin + GROUP, len(texts)), len(texts))
    return np.concatenate(vectors)


def nearest(queries: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """The neighbour [M, D] with the largest inner product with each query [N, D], the first of equals; int [N]."""
    blocks = (queries[begin : begin + GROUP] for begin in range(0, len(queries), GROUP))
    return np.concatenate([(block @ neighbours.T).argmax(axis=1) for block in blocks])


def centroids(vectors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The mean of the vectors [N, D] of each of C classes, 0 to C − 1 in int [N], at length 1; [C, D]."""
    means = np.zeros((int(classes.max()) + 1, vectors.shape[1]), vectors.dtype)
    np.add.at(means, classes, vectors)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def read_banking77(path: Path) -> Data:
    """train.csv and test.csv in ``path``, each with a header and the columns text and category."""
    return Data(_csv(path / "train.csv"), _csv(path / "test.csv"))


def read_clinc150(path: Path) -> Data:
    """data_full.json, or the folder that holds it: the parts train and test, whose requests all have an intent."""
    file = path / "data_full.json" if path.is_dir() else path
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))
        neighbours, queries = ([Request(*row) for row in parts[part]] for part in ("train", "test"))
        return Data(neighbours, queries, len(parts.get("oos_test", ())))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not readable text: {error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not JSON in CLINC150's format.") from None


def _csv(path: Path) -> list[Request]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable text: {error}.") from None
    if len(rows) < 2 or rows[0] != ["text", "category"] or any(len(row) != 2 for row in rows):
        raise InputError(f"{path} is not a CSV file with the columns text and category.")
    return [Request(*row) for row in rows[1:]]


DATA: dict[str, Callable[[Path], Data]] = {"banking77": read_banking77, "clinc150": read_clinc150}
"""Every data set of intents, and what reads it."""
