"""Neither an import nor an answer loads torch, transformers or triton."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[..., Path]

FOREIGN = {"torch", "transformers", "triton", "scipy", "onnxruntime"}
CALLS = {
    "fill-mask": "pipe('a [MASK]', targets=['b'])",
    "text-classification": "pipe(['a', {'text': 'b', 'text_pair': 'c'}], top_k=None)",
    "feature-extraction": "(pipe('a'), pipe.embed(['a', 'b']))",
}


def imported(code: str) -> set[str]:
    """The modules that a new interpreter has loaded after ``code``."""
    code += "\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_itself_imports_no_dependency() -> None:
    """Its names are resolved on first use, so that a service loads only what it uses."""
    modules = imported("import distilfast")
    assert not FOREIGN & modules
    assert not {"numpy", "tokenizers", "safetensors", "huggingface_hub"} & modules


def test_every_public_name_is_there() -> None:
    modules = imported("import distilfast\nfor name in distilfast.__all__: getattr(distilfast, name)")
    assert not FOREIGN & modules


@pytest.mark.parametrize("task", CALLS)
def test_a_whole_pipeline_from_file_to_answer(tiny_checkpoint: Make, task: str) -> None:
    directory = str(tiny_checkpoint("distilbert", task))
    modules = imported(f"import distilfast\npipe = distilfast.pipeline({task!r}, {directory!r})\n{CALLS[task]}")
    assert "distilfast._cpu" in modules
    assert not FOREIGN & modules


def test_an_engine_of_each_backend_without_a_gpu(tiny_checkpoint: Make) -> None:
    """``distilfast.info()`` is not covered: it imports torch, if installed, to look for a GPU."""
    directory = str(tiny_checkpoint("bert", "question-answering"))
    code = (
        "import distilfast\n"
        f"distilfast.Engine.from_pretrained({directory!r})([[2, 5, 3]], output_hidden_states=True)\n"
        f"distilfast.Engine.from_pretrained({directory!r}, backend='reference', precision='fp64')([[2, 5, 3]])\n"
    )
    assert not FOREIGN & imported(code)


def test_a_name_that_is_not_public() -> None:
    import distilfast

    with pytest.raises(AttributeError, match="module 'distilfast' has no attribute 'nonsense'"):
        distilfast.nonsense  # noqa: B018
    assert set(distilfast.__all__) <= set(dir(distilfast))
