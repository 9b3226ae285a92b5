"""What README and docs show is run: Python blocks as they stand, and shell lines against the real command line.

The hub is not reachable from here, so its cache on disk is filled: under every hub id that a block names there is a
small checkpoint with seeded weights and the same head, labels and modules. The code that finds it, ours and that of the
reference, is the real one. A block is left out only by a comment before it, ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import pytest
import typer

import distilfast
from distilfast import errors, types
from distilfast.cli import app
from distilfast.errors import InputError
from distilfast.pipelines import pipeline_class
from distilfast.synthetic import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_BESIDE = re.compile(r"^With (?P<library>[\w-]+):\s*$", re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*$")
_REASONS = ("needs an NVIDIA GPU", "is not installed with the tests", "needs a cluster")

_MISUSE = typer.BadParameter.__bases__[
    0
]  # what the parser raises for any wrong argument; typer may bring its own click

_SMALL = {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 48, "vocab_size": 256}
_VOCABULARY = {"vocab_size": 28_996}
_NLI = {"id2label": {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}}
_HUB: dict[str, tuple[types.Task, dict[str, Any]]] = {
    "distilbert-base-cased": ("fill-mask", _VOCABULARY),
    "distilbert-base-uncased": ("fill-mask", _VOCABULARY),
    "distilbert-base-uncased-finetuned-sst-2-english": (
        "text-classification",
        {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}},
    ),
    "dslim/distilbert-NER": ("token-classification", {}),
    "distilbert-base-cased-distilled-squad": ("question-answering", {}),
    "typeform/distilbert-base-uncased-mnli": ("text-classification", _NLI),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "feature-extraction",
        {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 256},
    ),
}
_LOCAL: dict[str, types.Task] = {
    "my-finetune": "text-classification",
    "my-intents": "text-classification",
    "my-entities": "token-classification",
    "my-swag-finetune": "multiple-choice",
}


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line of code in ``page``.

    ``library``: whose way it shows, where two stand beside one another; ``left_out``: why it is not run.
    """

    page: Path
    line: int
    language: str
    code: str
    library: str | None
    left_out: str | None


def blocks(page: Path, text: str | None = None) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8") if text is None else text
    for found in _FENCE.finditer(text):
        above = text[: found.start()]
        marker = _NOT_RUN.search(above)
        label = _BESIDE.fullmatch(above.rstrip("\n").rpartition("\n")[2])
        yield Block(
            page,
            above.count("\n") + 2,
            found["language"],
            found["code"],
            label["library"] if label else None,
            marker["reason"] if marker else None,
        )


def run(some: list[Block]) -> None:
    """As one program; a traceback shows the page and the line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in some:
        exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), namespace)


def pages_with(language: str) -> list[Any]:
    found = {page: [block for block in blocks(page) if block.language == language] for page in PAGES}
    return [pytest.param(some, id=str(page.relative_to(ROOT))) for page, some in found.items() if some]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub and, beside it, the directories that stand for a reader's own checkpoints."""
    folder = tmp_path_factory.mktemp("pages")
    for name, (task, config) in _HUB.items():
        repository = folder / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / "0"
        write_checkpoint(snapshot, task=task, config=config if "hidden_size" in config else _SMALL | config)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0")
    _write_modules(folder / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / "0")
    for name, task in _LOCAL.items():
        write_checkpoint(folder / "own" / name, task=task, config=_SMALL)
    return folder


def _write_modules(directory: Path) -> None:
    """Mean pooling, as the checkpoint on the hub lists it."""
    listed = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(listed)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "2_Normalize").mkdir()
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.fixture
def reader(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's directory, and a hub that is reached through its cache alone."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(checkpoints / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(checkpoints / "own")


@pytest.mark.parametrize("some", pages_with("python"))
@pytest.mark.usefixtures("reader")
@pytest.mark.filterwarnings("ignore:The target:UserWarning")  # which the small vocabulary lacks
def test_python_blocks_run(some: list[Block]) -> None:
    run([block for block in some if block.left_out is None])


def side_by_side() -> Iterator[Any]:
    """Of each task that has a pipeline in both libraries: our blocks, and those of the reference beside the last."""
    for page in PAGES:
        every = list(blocks(page))
        reference = [b.code for b in every if b.library == "transformers" and "import pipeline" in b.code]
        if reference:
            ours = [block.code for block in every if block.library == "distilfast"]
            yield pytest.param(ours, reference, id=str(page.relative_to(ROOT)))


def last_values(codes: list[str]) -> list[Any]:
    """What an interactive Python would print of the last line of each block; None of one that is no expression."""
    namespace: dict[str, Any] = {}
    values = []
    for code in codes:
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "block", "exec"), namespace)
        values.append(None if last is None else eval(compile(ast.Expression(last.value), "block", "eval"), namespace))
    return values


def without_scores(answer: Any) -> Any:
    """Keys, labels, words, places and their order; how near scores are is tested in tests/model."""
    if isinstance(answer, dict):
        return {key: without_scores(value) for key, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [without_scores(value) for value in answer]
    return "a score" if isinstance(answer, (float, np.floating)) else answer


@pytest.mark.parametrize(("ours", "reference"), list(side_by_side()))
@pytest.mark.usefixtures("reader")
def test_blocks_side_by_side_answer_alike(ours: list[str], reference: list[str]) -> None:
    got, want = last_values(ours)[-len(reference) :], last_values(reference)
    assert None not in want
    assert without_scores(got) == without_scores(want)


def test_a_block_is_left_out_for_a_reason_only() -> None:
    left_out = [block for page in PAGES for block in blocks(page) if block.left_out]
    for block in left_out:
        assert any(reason in (block.left_out or "") for reason in _REASONS), f"{block.page}:{block.line}"
        compile(block.code, str(block.page), "exec")


def test_a_wrong_block_is_found_at_its_line() -> None:
    page = ROOT / "page.md"
    text = "# A page\n\nWith distilfast:\n\n```python\nx = 1\n```\n\n```python\nx.nothing()\n```\n"
    found = list(blocks(page, text))
    assert [(b.line, b.code, b.library) for b in found] == [(6, "x = 1\n", "distilfast"), (10, "x.nothing()\n", None)]
    with pytest.raises(AttributeError) as caught:
        run(found)
    assert caught.traceback[-1].lineno == 9 and str(caught.traceback[-1].path) == str(page)  # counted from 0


def shell_lines() -> Iterator[Any]:
    """Of the fenced blocks, and of the ones that are indented (README, CONTRIBUTING)."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks(page) if block.language == "sh" for line in block.code.splitlines()]
        lines += re.findall(r"^    ((?:distilfast|make|python -m) .*)$", _FENCE.sub("", text), re.MULTILINE)
        for line in lines:
            yield pytest.param(line, id=f"{page.relative_to(ROOT)}: {line}")


@pytest.mark.parametrize("line", list(shell_lines()))
def test_shell_lines_are_those_of_the_programs(line: str) -> None:
    """Arguments and options are parsed by the program itself; nothing is run."""
    words = shlex.split(line, comments=True)
    check_words(words[words.index("--") + 1 :] if words[:2] == ["ray", "job"] else words)


def check_words(words: list[str]) -> None:
    name, *rest = words
    if name == "distilfast":
        check_command(rest)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [word for word in rest if "=" not in word and word not in targets] == []
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None
    elif name == "python":
        assert (ROOT / rest[0]).is_file()
    else:
        assert name in ("pip", "podman", "curl", "serve"), f"nothing here checks {name}"


@cache
def program() -> Any:
    return typer.main.get_command(app)


def check_command(words: list[str]) -> None:
    group = program()
    context = group.make_context("distilfast", list(words))
    name, command, rest = group.resolve_command(context, list(words))
    given = command.make_context(name, list(rest), parent=context).params
    for option, known in (("precision", types.Precision), ("backend", types.BackendName)):
        assert given.get(option) in (None, *get_args(known))
    if "task" in given and name in ("run", "map"):
        pipeline_class(given["task"])
    if name == "bench":
        check_bench(rest)


def check_bench(words: list[str]) -> None:
    from benchmarks.run import _arguments

    with patch.object(sys, "argv", ["run.py", *words]):
        _arguments()


@pytest.mark.parametrize(
    "line",
    [
        "distilfast run fill-mask m text --top 3",
        "distilfast run fill-maks m text",
        "distilfast parity m --precision int4",
        "distilfast look m",
        "make bech",
        "python -m benchmarks.reports",
    ],
)
def test_a_wrong_line_is_found(line: str) -> None:
    with pytest.raises((_MISUSE, InputError, AssertionError)):
        check_words(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and where the link is a test's name, to one that is there."""
    for words, target in re.findall(r"\[([^\]]*)\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
        for name in re.findall(r"`(test_\w+)`", words):
            assert re.search(rf"^def {name}\(", (page.parent / target).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_named_in_passing_is_there(page: Path) -> None:
    """Files of the repository, and the extras of an installation."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:benchmarks|csrc|deploy|distilfast|kernels|tests)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\.\[(\w+)\]", text):
        assert re.search(rf"^{name} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 120


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^::: [\w.]*\b(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(distilfast.__all__) <= {*listed, *vars(errors)}


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert listed == there and os.path.isdir(ROOT / "docs")
