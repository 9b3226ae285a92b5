"""Writes question_answering.json with transformers 4.57.1, the last line of releases that has the pipeline.

    python -m tests.golden.make_question_answering    # needs torch, transformers==4.57.1 and shared/data

For each call in ``CALLS`` and every tenth question of XQuAD: [score, start, end] of each answer. Where an answer's text
is not ``context[start:end]``, the script stops. test_question_answering.py needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from distilfast.synthetic import write_checkpoint

ANSWERS = Path(__file__).with_name("question_answering.json")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CONFIG = {
    "dim": 64,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 96,
    "vocab_size": 28996,
    "max_position_embeddings": 512,
}
WINDOWS = {"max_seq_len": 128, "doc_stride": 32}
CALLS: dict[str, dict[str, Any]] = {
    "best": {},
    "three": {"top_k": 3},
    "windows": WINDOWS,
    "three of windows": {"top_k": 3, **WINDOWS},
    "impossible": {"top_k": 3, "handle_impossible_answer": True, **WINDOWS},
    "tokens": {"top_k": 3, "align_to_words": False},
    "one token": {"top_k": 3, "align_to_words": False, "max_answer_len": 1, **WINDOWS},
    "long answers": {"top_k": 2, "max_answer_len": 60},
}


def checkpoint(directory: Path) -> Path:
    """The seeded checkpoint of every case, with the real cased vocabulary."""
    return write_checkpoint(
        directory, task="question-answering", config=CONFIG, seed=11, vocabulary=DATA / "vocab-cased"
    )


def questions() -> dict[str, dict[str, str]]:
    """``{"question", "context"}`` of every tenth question of XQuAD, by its id."""
    articles = json.loads((DATA / "squad-xquad-en" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    asked = [(entry, paragraph["context"]) for paragraph in paragraphs for entry in paragraph["qas"]]
    return {entry["id"]: {"question": entry["question"], "context": context} for entry, context in asked[::10]}


def main() -> None:
    """Run transformers and write its answers."""
    import transformers

    assert transformers.__version__ == "4.57.1", transformers.__version__
    with tempfile.TemporaryDirectory() as directory:
        pipe = transformers.pipeline("question-answering", str(checkpoint(Path(directory))), device="cpu")
    answers = {
        name: {each: placed(pipe(**item, **options), item["context"]) for each, item in questions().items()}
        for name, options in CALLS.items()
    }
    lines = [
        f"{json.dumps(name)}: {{\n" + ",\n".join(f"{json.dumps(i)}: {json.dumps(a)}" for i, a in each.items()) + "\n}"
        for name, each in answers.items()
    ]
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def placed(answer: Any, context: str) -> list[tuple[float, int, int]]:
    """[score, start, end] of one answer or of each in a list."""
    several = answer if isinstance(answer, list) else [answer]
    assert all(each["answer"] == context[each["start"] : each["end"]] for each in several)
    return [(float(f"{each['score']:.7g}"), each["start"], each["end"]) for each in several]


if __name__ == "__main__":
    main()
