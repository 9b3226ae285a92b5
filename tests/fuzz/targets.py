"""What is fuzzed: for each target a function of bytes, from which only distilfast's own errors may come.

Bytes choose among odd values rather than being parsed: most reach past the JSON or argument parser.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from atheris import FuzzedDataProvider

from distilfast import Engine, PackedBatch, pipeline
from distilfast.checkpoint import open_checkpoint
from distilfast.config import ModelConfig
from distilfast.errors import DistilfastError
from distilfast.heads import TASKS, head_for
from distilfast.pipelines import PIPELINES
from distilfast.synthetic import write_checkpoint
from distilfast.tokenizer import Tokenizer

Target = Callable[[bytes], None]

TINY = {"dim": 32, "n_heads": 4, "n_layers": 1, "hidden_dim": 48, "vocab_size": 256, "max_position_embeddings": 16}
NUMBERS = (0, 1, -1, 2, 3, 4, 12, 16, 31, 32, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**30))
FLOATS = (0.5, -1.0, 1e-12, 1e300, math.nan, math.inf)
WORDS = (
    *("simple", "first", "average", "max", "none", "return", "{} a", "a, b"),
    *("", "x", "512", "false", "gelu", "relu", "mean", "distilbert", "bert", "absolute", "softmax", "longest_first"),
    *("DistilBertForMaskedLM", "BertForQuestionAnswering", "BertTokenizer", "[MASK]", "[UNK]", "\ud800", "é", "0"),
)


def value(data: FuzzedDataProvider, depth: int = 0) -> Any:
    """Something that JSON can hold, seldom what is wanted."""
    kind = data.ConsumeIntInRange(0, 7 if depth < 3 else 5)
    if kind == 0:
        return data.PickValueInList(list(NUMBERS))
    if kind == 1:
        return data.PickValueInList(list(FLOATS))
    if kind == 2:
        return data.PickValueInList(list(WORDS))
    if kind == 3:
        return data.PickValueInList([None, True, False])
    if kind == 4:
        return data.ConsumeInt(8)
    if kind == 5:
        return data.ConsumeUnicode(12)
    items = [value(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 3))]
    return items if kind == 6 else {str(value(data, 3)): item for item in items}


def changed(data: FuzzedDataProvider, raw: dict[str, Any], more: tuple[str, ...] = ()) -> dict[str, Any]:
    """``raw`` with up to three of its keys, or of ``more``, removed or given odd values."""
    keys, result = [*raw, *more], dict(raw)
    for _ in range(data.ConsumeIntInRange(0, 3)):
        key = data.PickValueInList(keys)
        if data.ConsumeIntInRange(0, 4) == 0:
            result.pop(key, None)
        else:
            result[key] = value(data)
    return result


def write_json(path: Path, data: FuzzedDataProvider, raw: dict[str, Any], more: tuple[str, ...] = ()) -> None:
    """A changed ``raw``; one in eight times bytes that need not be JSON at all."""
    if data.ConsumeIntInRange(0, 7) == 7:
        path.write_bytes(data.ConsumeBytes(200))
    else:
        path.write_text(json.dumps(changed(data, raw, more)), encoding="utf-8", errors="surrogatepass")


CONFIG_KEYS = (
    *("activation", "architectures", "id2label", "num_labels", "pad_token_id", "problem_type", "function_to_apply"),
    *("tie_word_embeddings", "is_decoder", "position_embedding_type", "sinusoidal_pos_embds", "layer_norm_eps"),
    *("type_vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
)


def config(scratch: Path) -> Target:
    """config.json, as far as the head that it asks for."""
    raw = json.loads((checkpoint_in(scratch, "text-classification") / "config.json").read_text())
    path = scratch / "config.json"

    def run(data: bytes) -> None:
        write_json(path, FuzzedDataProvider(data), raw, CONFIG_KEYS)
        read = ModelConfig.from_file(path)
        head_for(read, read.task)

    return run


def checkpoint(scratch: Path) -> Target:
    """config.json over weights of another shape, loaded and run."""
    directory = checkpoint_in(scratch, "text-classification")
    raw = json.loads((directory / "config.json").read_text())

    def run(data: bytes) -> None:
        provider = FuzzedDataProvider(data)
        write_json(directory / "config.json", provider, raw, CONFIG_KEYS)
        engine = Engine.from_pretrained(directory, task=provider.PickValueInList([None, *TASKS]), threads=1)
        engine.encode(PackedBatch.from_sequences([[1, 2, 3]]))

    return run


def safetensors(scratch: Path) -> Target:
    """The header of model.safetensors, and each tensor that it names."""
    directory = checkpoint_in(scratch, "feature-extraction")
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    raw, body = json.loads(whole[8:end]), whole[end:]

    def run(data: bytes) -> None:
        provider = FuzzedDataProvider(data)
        header = changed(provider, raw)
        name = provider.PickValueInList(list(raw))
        if isinstance(header.get(name), dict):
            header[name] = changed(provider, header[name], ("dtype", "shape", "data_offsets"))
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        size = provider.ConsumeInt(8) % 2**64 if provider.ConsumeIntInRange(0, 7) == 7 else len(text)
        end = provider.ConsumeIntInRange(0, len(body)) if provider.ConsumeIntInRange(0, 7) == 7 else len(body)
        path.write_bytes(size.to_bytes(8, "little") + text + body[:end])
        for tensor in open_checkpoint(directory).tensors.values():
            tensor.array.sum()

    return run


TOKENIZER_KEYS = (
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length", "tokenizer_class", "unk_token"),
    *("cls_token", "sep_token", "mask_token", "pad_token", "added_tokens_decoder", "additional_special_tokens"),
    *("extra_special_tokens", "clean_up_tokenization_spaces", "max_len"),
)


def tokenizer(scratch: Path) -> Target:
    """tokenizer_config.json, special_tokens_map.json, tokenizer.json and vocab.txt, and a text through them."""
    directory = checkpoint_in(scratch, "fill-mask")
    vocabulary = (directory / "vocab.txt").read_bytes()
    lines = vocabulary.decode().splitlines()
    raw = json.loads((directory / "tokenizer_config.json").read_text())
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {line: i for i, line in enumerate(lines)}}
    serialized = {"model": model, "added_tokens": [{"id": 4, "content": "[MASK]", "special": True}]}

    def run(data: bytes) -> None:
        provider = FuzzedDataProvider(data)
        for name in ("special_tokens_map.json", "tokenizer.json"):
            (directory / name).unlink(missing_ok=True)
        write_json(directory / "tokenizer_config.json", provider, raw, TOKENIZER_KEYS)
        if provider.ConsumeIntInRange(0, 3) == 0:
            write_json(directory / "special_tokens_map.json", provider, {}, TOKENIZER_KEYS)
        if provider.ConsumeIntInRange(0, 3) == 0:
            write_json(directory / "tokenizer.json", provider, serialized, ("version", "normalizer"))
        cut = provider.ConsumeIntInRange(0, 3) == 0
        (directory / "vocab.txt").write_bytes(provider.ConsumeBytes(64) if cut else vocabulary)
        read = Tokenizer.from_directory(directory)
        text = provider.ConsumeUnicode(20)
        ids = read.encode(text, truncation=provider.ConsumeBool()).ids
        read.decode(ids), read.mask_id, read.pad_id, read.max_length

    return run


def arguments(scratch: Path) -> Target:
    """Texts and options of every pipeline."""
    shared = ("batch_size", "errors", "return_truncation")
    windows = ("truncation", "max_length", "window", "stride", "over_windows")
    tasks: dict[str, tuple[str, ...]] = {
        "fill-mask": ("top_k", "targets", "tokenizer_kwargs"),
        "text-classification": ("top_k", "function_to_apply", *windows),
        "feature-extraction": ("truncation", "tokenize_kwargs", "return_tensors"),
        "token-classification": ("aggregation_strategy", "ignore_labels", "stride", "is_split_into_words", "delimiter"),
        "question-answering": (
            "top_k",
            "doc_stride",
            "max_answer_len",
            "max_seq_len",
            "max_question_len",
            "sum_scores",
        ),
        "zero-shot-classification": ("candidate_labels", "hypothesis_template", "multi_label"),
        "sentence-similarity": ("max_length",),
        "multiple-choice": ("top_k", "truncation", "max_length"),
    }
    made = {
        task: pipeline(task, checkpoint_in(scratch / task, PIPELINES[task].engine_task), threads=1) for task in tasks
    }
    inputs = (
        *("a", "[MASK] a", ["a", "[MASK]"], ("a", "b"), [], "a b " * 20, [["a", "b"]], {"text": "a", "text_pair": "b"}),
        *({"question": "a", "context": "b c " * 9}, {"prompt": "a", "choices": ["b", "c"]}),
        {"source_sentence": "a", "sentences": ["b"]},
    )

    def run(data: bytes) -> None:
        provider = FuzzedDataProvider(data)
        task = provider.PickValueInList(list(tasks))
        names = (*tasks[task], *shared)
        options = {name: value(provider) for name in names if provider.ConsumeIntInRange(0, 2) == 0}
        texts = value(provider) if provider.ConsumeIntInRange(0, 3) == 0 else provider.PickValueInList(list(inputs))
        made[task](texts, **options)

    return run


def batch(scratch: Path) -> Target:
    """The arrays of a PackedBatch, rows and columns: any numbers, lengths and integer types."""
    engine = Engine.from_pretrained(checkpoint_in(scratch, "token-classification"), threads=1)

    def array(provider: FuzzedDataProvider, usual: list[int]) -> np.ndarray | None:
        if provider.ConsumeIntInRange(0, 7) == 0:
            return None
        dtype = provider.PickValueInList(["i4", ">i4", "u2", "u8", "i8", "u1", "f4", "?"])
        numbers = list(usual)
        for _ in range(provider.ConsumeIntInRange(0, 2)):
            if numbers and provider.ConsumeBool():
                numbers[provider.ConsumeIntInRange(0, len(numbers) - 1)] = provider.PickValueInList(list(NUMBERS))
            elif provider.ConsumeBool():
                numbers.append(provider.ConsumeIntInRange(-3, 300))
            else:
                numbers = numbers[:-1]
        return np.array([number % 2**63 for number in numbers], np.uint64).astype(dtype)

    def run(data: bytes) -> None:
        provider = FuzzedDataProvider(data)
        packed = PackedBatch(
            *(array(provider, usual) for usual in ([5, 6, 7, 8], [0, 1, 2, 0], [0, 3, 4], [0, 0, 0, 0]))
        )
        engine.logits(packed, rows=array(provider, [0, 2]), columns=array(provider, [0, 1]))

    return run


def command_line(scratch: Path) -> Target:
    """Words after ``distilfast``: exit status 0, 1 or 2 and no traceback."""
    from typer.testing import CliRunner

    from distilfast.cli import app

    directory = str(checkpoint_in(scratch, "text-classification"))
    words = (
        *("info", "run", "text-classification", "fill-mask", directory, "a text", "--json", "--top-k", "--threads"),
        *("--precision", "int8", "fp32", "--backend", "cpu", "reference", "--task", "--target", "2", "-1", "x", ""),
        *("--function-to-apply", "none", "--revision", "/absent", "--help", "[MASK]", "--", "\ud800"),
    )

    def run(data: bytes) -> None:
        provider = FuzzedDataProvider(data)
        first = provider.PickValueInList(["info", "run"])
        given = [first, *(provider.PickValueInList(list(words)) for _ in range(provider.ConsumeIntInRange(0, 7)))]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = CliRunner().invoke(app, given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), (given, result.exit_code)

    return run


TARGETS: dict[str, Callable[[Path], Target]] = {
    each.__name__: each for each in (config, checkpoint, safetensors, tokenizer, arguments, batch, command_line)
}


def checkpoint_in(directory: Path, task: Any) -> Path:
    """A fresh small checkpoint."""
    shutil.rmtree(directory / "checkpoint", ignore_errors=True)
    return write_checkpoint(directory / "checkpoint", task=task, config={"model_type": "distilbert"} | TINY)


def guarded(target: Target) -> Target:
    """``target`` without the errors that are its right answers to bad input."""

    def run(data: bytes) -> None:
        with contextlib.suppress(DistilfastError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            target(data)

    return run
