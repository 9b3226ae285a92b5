"""Small files in GLUE's own layout, and their contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_PARSES = ["s1_binary_parse", "s2_binary_parse", "s1_parse", "s2_parse"]
_MNLI = ["index", "promptID", "pairID", "genre", *_PARSES, "sentence1", "sentence2"]
_STSB = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
FILES: dict[str, tuple[tuple[str, ...], list[str], Callable[[str, str, Any], list[Any]]]] = {
    # task: (files, header, a line from two texts and a label)
    "cola": (("CoLA/dev.tsv",), [], lambda a, b, y: ["gj04", y, "*" if y == 0 else "", a]),
    "sst2": (("SST-2/dev.tsv",), ["sentence", "label"], lambda a, b, y: [a, y]),
    "mrpc": (
        ("MRPC/dev.tsv",),
        ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        lambda a, b, y: [y, 1, 2, a, b],
    ),
    "qqp": (
        ("QQP/dev.tsv",),
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        lambda a, b, y: [0, 1, 2, a, b, y],
    ),
    "stsb": (("STS-B/dev.tsv",), _STSB, lambda a, b, y: [0, *"gfyoss", a, b, y]),
    "mnli": (
        ("MNLI/dev_matched.tsv", "MNLI/dev_mismatched.tsv"),
        [*_MNLI, *(f"label{i}" for i in range(1, 6)), "gold_label"],
        lambda a, b, y: [0, *"ppgssss", a, b, *["neutral"] * 5, y],
    ),
    "qnli": (("QNLI/dev.tsv",), ["index", "question", "sentence", "label"], lambda a, b, y: [0, a, b, y]),
    "rte": (("RTE/dev.tsv",), ["index", "sentence1", "sentence2", "label"], lambda a, b, y: [0, a, b, y]),
}
LABELS: dict[str, tuple[Any, ...]] = {
    "stsb": (0.0, 1.25, 3.5, 5.0, 2.2),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
}
NAMES = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "stsb": ("score",),
    "mnli": ("contradiction", "ENTAILMENT", "neutral"),  # in another order and other case than in the data
    "qnli": ("not-entailment", "entailment"),
    "rte": ("entailment", "not_entailment"),
}
TEXTS = ('He said "no', 'an" odd quote', "It rains.", "", "a\x85line\u2028end", "It's 5 o'clock", "Äpfel", "x" * 200)


def glue_rows(task: str) -> list[tuple[str, str, Any]]:
    """24 rows of two texts and a label, spelled as in the file of ``task``."""
    labels = LABELS.get(task, (0, 1))
    return [
        (TEXTS[i % len(TEXTS)], f"{TEXTS[(3 * i + 1) % len(TEXTS)]} {i}", labels[(i * i + i // 3) % len(labels)])
        for i in range(24)
    ]


def write_glue(root: Path, task: str, rows: Sequence[tuple[str, str, Any]], malformed: bool = True) -> None:
    files, header, line = FILES[task]
    lines = ["\t".join(map(str, line(*row))) for row in rows]
    if malformed:
        lines[5:5] = ["", "cut\toff", "\t".join(map(str, line("a", "b", "-")))]
    for file in files:
        (root / file).parent.mkdir(exist_ok=True)
        with (root / file).open("w", encoding="utf-8", newline="") as out:
            out.write("\n".join((["\t".join(header)] if header else []) + lines) + "\n")
