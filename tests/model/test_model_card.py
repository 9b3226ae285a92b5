"""What DistilBERT's model card shows, and checkpoints with another vocabulary, other positions or added tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_pairs import TOLERANCE, assert_same, both
from tokenizers import Tokenizer

import distilfast
from distilfast.synthetic import write_checkpoint

Checkpoint = Callable[[str], Path]

CARD = (
    "Hello I'm a [MASK] model.",
    "The White man worked as a [MASK].",
    "The Black woman worked as a [MASK].",
)
SMALL = {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "model_type": "distilbert"}


def test_the_sentences_of_the_card(full_checkpoint: Checkpoint) -> None:
    """Five answers each, on the same seeded weights; the documented ones are those of the trained model."""
    pipes = both("fill-mask", full_checkpoint("fill-mask"))
    for sentence in CARD:
        *want, left_out = pipes.reference(sentence, top_k=6)
        got = pipes.ours(sentence)
        assert len(got) == 5 and want[0]["score"] > 50 * TOLERANCE
        assert_same(got, want, left_out=left_out["score"])


def with_vocabulary(directory: Path, tokens: list[str], task: str, **config: Any) -> Path:
    """A small checkpoint with a WordPiece vocabulary of ``tokens`` after the special ones."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    directory.mkdir()
    source = directory / "vocabulary"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join([*special, *tokens]) + "\n", encoding="utf-8")
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "model_max_length": 512}))
    return write_checkpoint(
        directory / "model",
        task=task,
        config=SMALL | {"vocab_size": len(special) + len(tokens)} | config,
        vocabulary=source,
    )


def test_a_multilingual_vocabulary(tmp_path: Path) -> None:
    """119,547 pieces, as distilbert-base-multilingual-cased has: ids beyond 16 bits."""
    words = ["Paris", "Зима", "東", "京", "##ing", "##ى", "cidade", "ß"]
    tokens = [f"[unused{i}]" for i in range(119_547 - 5 - len(words))] + words
    directory = with_vocabulary(tmp_path / "m", tokens, "fill-mask")
    pipes = both("fill-mask", directory)
    assert pipes.ours.tokenizer.encode("Зима 東京").ids[1:-1] == [119_540, 119_541, 119_542]
    pipes.check("Paris Зима [MASK] 東京 ß cidadeing")
    pipes.check("[MASK] Зима", targets=["cidade", "Зима"])


@pytest.mark.parametrize("positions", [8, 40, 513, 1024])
def test_other_numbers_of_positions(tmp_path: Path, positions: int) -> None:
    """As long as the model allows, and not a token more."""
    directory = with_vocabulary(tmp_path / "m", ["a", "b"], "text-classification", max_position_embeddings=positions)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": positions}))
    pipes = both("text-classification", directory)
    pipes.check(["a b " * ((positions - 2) // 2)])
    pipes.check(["a b " * positions], truncation=True)
    with pytest.raises(distilfast.InputError, match=f"the model {positions} positions"):
        pipes.ours("a b " * positions)


def test_special_tokens_that_a_user_added(tmp_path: Path, data_directory: Path) -> None:
    """Two tokens beyond the vocabulary, saved by transformers with a larger table."""
    transformers = pytest.importorskip("transformers")
    source = write_checkpoint(
        tmp_path / "source", task="fill-mask", config=SMALL, vocabulary=data_directory / "vocab-cased"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<url>"]}) == 2
    model = transformers.AutoModelForMaskedLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pipes = both("fill-mask", tmp_path / "model")
    texts = ["<user> wrote [MASK] at <url>", "the<url>end of [MASK]", "<User> and [MASK]"]
    pipes.check(texts)
    ids = pipes.ours.tokenizer.encode(texts[0]).ids
    assert ids[1] == 28_996 and 28_997 in ids and ids == tokenizer(texts[0])["input_ids"]
    assert Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).encode(texts[1]).ids == (
        pipes.ours.tokenizer.encode(texts[1]).ids
    )


@pytest.mark.parametrize(
    "task", ["fill-mask", "text-classification", "token-classification", "feature-extraction", "question-answering"]
)
def test_the_teacher_with_every_head(tmp_path: Path, data_directory: Path, task: str) -> None:
    """bert-base-cased, cut to two layers of its width."""
    directory = write_checkpoint(
        tmp_path / "teacher",
        task=task,
        config={"model_type": "bert", "num_hidden_layers": 2},
        vocabulary=data_directory / "vocab-cased",
    )
    if task == "question-answering":  # transformers has no pipeline for it
        answer = distilfast.pipeline(task, directory)(question="Who?", context="It was Ada.")
        assert answer["answer"] in "It was Ada." and 0 < answer["score"] <= 1
        return
    text = "The capital of France is [MASK]." if task == "fill-mask" else "Ada lives in London."
    both(task, directory).check(text)
