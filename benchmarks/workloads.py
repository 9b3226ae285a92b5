"""The inputs: the same ids for every contestant, padded as in practice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from distilfast.tokenizer import Tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real text, not part of the project; a workload that needs it is left out, with its reason, where it is absent."""


@dataclass(frozen=True)
class Case:
    """``batch`` sequences of ``tokens`` random tokens; where ``ragged``, of 1 to so many, and padded."""

    batch: int
    tokens: int
    ragged: bool = False

    @property
    def name(self) -> str:
        """For tables: "8x128"."""
        return f"{self.batch}x{self.tokens}" + " ragged" * self.ragged

    def batches(self, directory: Path) -> list[tuple[np.ndarray, np.ndarray]]:
        """One (ids, mask), seeded by the case."""
        vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
        rng = np.random.default_rng([self.batch, self.tokens])
        ids = rng.integers(0, vocabulary, (self.batch, self.tokens))
        if not self.ragged:
            return [(ids, np.ones_like(ids))]
        mask = (np.arange(self.tokens) < rng.integers(1, self.tokens + 1, (self.batch, 1))).astype(np.int64)
        mask[0] = 1  # one is of full length, or the padding would be shorter
        return [(ids * mask, mask)]


@dataclass(frozen=True)
class Ragged:
    """Batches of ``batch`` real texts of ``source`` ("clinc150" or "xquad"), each padded to its longest."""

    source: str
    batch: int = 32
    count: int = 4

    @property
    def name(self) -> str:
        """For tables: "clinc150 x32"."""
        return f"{self.source} x{self.batch}"

    def texts(self) -> list[list[str]]:
        """``count`` lists of ``batch`` texts, seeded."""
        everything = real_texts(self.source)
        picks = np.random.default_rng(0).choice(len(everything), (self.count, self.batch), replace=False)
        return [[everything[i] for i in row] for row in picks]

    def batches(self, directory: Path) -> list[tuple[np.ndarray, np.ndarray]]:
        """``count`` times (ids, mask)."""
        tokenizer = Tokenizer.from_directory(directory)
        return [
            pad([e.ids for e in tokenizer.encode_batch(texts, truncation=True, max_length=512)])
            for texts in self.texts()
        ]


QUICK = (Case(1, 16), Case(1, 128), Case(8, 128))
GRID = (*(Case(1, n) for n in (8, 16, 32, 64, 128, 256, 512)), *(Case(8, n) for n in (32, 128, 512)), Case(32, 128))
RAGGED = (Ragged("clinc150"), Ragged("xquad", count=1))


def grid(device: str) -> tuple[Case, ...]:
    """Equal lengths; a GPU is given large batches too."""
    return (*GRID, Case(256, 128), Case(256, 128, ragged=True)) if device == "cuda" else GRID


def of_latency(device: str, quick: bool) -> list[Case | Ragged]:
    """The cases of the latency measurement; those of real text where there is any."""
    cases: list[Case | Ragged] = list(QUICK if quick else grid(device))
    if unavailable() is None:
        cases += RAGGED[:1] if quick else RAGGED
    return cases


def no_case(names: Iterable[str], device: str, quick: bool) -> str | None:
    """One sentence where a name is that of no case, or None."""
    known = [case.name for case in of_latency(device, quick)]
    unknown = sorted(set(names) - set(known))
    if not unknown:
        return None
    absent = {case.name for case in RAGGED} & set(unknown)
    why = f" {', '.join(sorted(absent))} needs real text: {unavailable()}" if absent and unavailable() else ""
    return f"no case {', '.join(unknown)}; there are {', '.join(known)}.{why}"


def padded_check(directory: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """A small batch with padding, for the question "is the answer right?"."""
    [(ids, mask)] = Case(4, 24).batches(directory)
    mask = (np.arange(24) < np.array([[24], [3], [17], [1]])).astype(np.int64)
    return [(ids * mask, mask)]


def unavailable() -> str | None:
    """Why there is no real text, or None."""
    return None if DATA.is_dir() else "the folder shared/data beside the project is absent."


def pad(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids → (ids, mask), int64 [B, longest]."""
    lengths = np.array([len(sequence) for sequence in sequences])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    ids[mask == 1] = np.concatenate(sequences)
    return ids, mask


@cache
def real_texts(source: str) -> list[str]:
    """CLINC150's test requests, or XQuAD's paragraphs."""
    if source == "clinc150":
        return [text for text, _ in json.loads((DATA / "clinc150" / "data_full.json").read_text())["test"]]
    articles = json.loads((DATA / "squad-xquad-en" / "xquad.en.json").read_text())["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
