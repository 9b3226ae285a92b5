"""The truth of a comparison, and how far a naive forward in the engine's precision is from it.

The naive forward is always the reference's own, so the budgets, and with them the verdicts, are the same on every
machine. torch's own error depends on the order of summation that its libraries choose for a processor: it is shown
beside the budgets, and no verdict depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distilfast.backends.base import Trace
from distilfast.batch import PackedBatch
from distilfast.errors import BackendError
from distilfast.heads import Head
from distilfast.parity.budgets import Arithmetic, Budget
from distilfast.parity.steps import Tensors, forward, narrowed, steps
from distilfast.weights import Weights, layout

AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
}
"""Task -> the class of transformers that loads it."""


class Oracle(Protocol):
    """Traces under the names of ``distilfast.backends.base``; ``yardstick`` says what the naive forward is."""

    yardstick: str

    def truth(self, batch: PackedBatch) -> Trace:
        """In float64."""
        ...

    def naive(self, batch: PackedBatch) -> Trace:
        """In the engine's precision, float32 arrays."""
        ...

    def torch(self, batch: PackedBatch) -> Trace | None:
        """As transformers computes in the engine's precision; None where that is not known."""
        ...


class ReferenceOracle:
    """``distilfast/reference.py``, in float64 and in the naive arithmetic of the precision."""

    def __init__(self, weights: Weights, exact: Tensors, head: Head, precision: str, budget: Budget) -> None:
        """``exact``: the tensors in float64, of ``in_float64``."""
        self.weights, self.head, self._arithmetic = weights, head, budget.arithmetic
        self._exact, self._plain = exact, narrowed(dict(weights.tensors), budget.arithmetic)
        self.yardstick = f"plain {'fp32' if precision == 'fp64' else precision}"

    def truth(self, batch: PackedBatch) -> Trace:
        """See ``Oracle``."""
        return forward(steps(batch, self.weights.config, self.head), self._exact)

    def naive(self, batch: PackedBatch) -> Trace:
        """See ``Oracle``."""
        return forward(steps(batch, self.weights.config, self.head), self._plain, self._arithmetic)

    def torch(self, batch: PackedBatch) -> None:
        """See ``Oracle``."""


class TransformersOracle:
    """The checkpoint in transformers' own modules, in float64, and in their own float32, bfloat16 or float16."""

    def __init__(self, directory: Path, plain: ReferenceOracle, budget: Budget) -> None:
        """``plain``: the reference's oracle of the same model; raises BackendError where transformers is absent."""
        model = load_transformers(directory, plain.head.task)
        self._exact = TransformersModel(copy.deepcopy(model).double(), plain.weights, plain.head)
        self._own: Callable[[PackedBatch], Trace | None] = plain.torch
        if budget.torch:
            self._own = TransformersModel(model.to(getattr(_torch(), budget.torch)), plain.weights, plain.head)
        self.naive, self.yardstick = plain.naive, plain.yardstick

    def truth(self, batch: PackedBatch) -> Trace:
        """See ``Oracle``."""
        return self._exact(batch)

    def torch(self, batch: PackedBatch) -> Trace | None:
        """See ``Oracle``."""
        return self._own(batch)


def in_float64(weights: Weights) -> Tensors:
    """The tensors, widened."""
    return {name: tensor.astype(np.float64) for name, tensor in weights.tensors.items()}


def load_transformers(directory: Path, task: str) -> Any:
    """The model of ``task`` as transformers loads it, float32, eager attention; raises BackendError."""
    _torch()
    try:
        import transformers
    except ImportError as error:
        raise _absent(error) from None
    load = getattr(transformers, AUTO_CLASSES[task]).from_pretrained
    with _no_progress_bar(transformers.utils.logging):
        return load(directory, attn_implementation="eager", dtype="float32", local_files_only=True).eval()


@contextmanager
def _no_progress_bar(logging: Any) -> Iterator[None]:
    """A progress bar for loading a few files would appear in the middle of a report."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise _absent(error) from None
    return torch


def _absent(error: ImportError) -> BackendError:
    return BackendError(f"transformers cannot be compared with, for it or torch cannot be imported: {error}.")


class TransformersModel:
    """Calls a model on a padded batch and takes every intermediate out of its modules with hooks.

    Which module makes which intermediate follows from the checkpoint's tensor names (``weights.layout``): a linear's or
    a norm's is its module's output, and one without a module of its own is the input of the module that reads it.
    """

    def __init__(self, model: Any, weights: Weights, head: Head) -> None:
        """``model``: of the class that belongs to ``head.task``."""
        self._model, self._config, self._head = model, weights.config, head
        self._modules: dict[str, list[Any]] = {}
        for need in layout(weights.config, head.task, pooler="head.0.weight" in weights.tensors):
            if need.name.endswith(".bias"):
                self._modules[need.name.removesuffix(".bias")] = [
                    self._module(piece.removesuffix(".bias")) for piece in need.pieces
                ]

    def _module(self, path: str) -> Any:
        try:
            return self._model.base_model.get_submodule(path)
        except AttributeError:
            return self._model.get_submodule(path)

    def __call__(self, batch: PackedBatch) -> Trace:
        """Every intermediate of one forward; float64 where the model is, else float32."""
        keep = np.arange(int(np.diff(batch.cu_seqlens).max())) < np.diff(batch.cu_seqlens)[:, None]
        caught: dict[str, list[np.ndarray]] = {}
        with ExitStack() as hooks, _torch().inference_mode():
            for name, module, is_input in self._watched():
                hooks.callback(_watch(module, caught.setdefault(name, []), is_input).remove)
            outputs = self._model(**self._inputs(batch, keep), output_attentions=True)
        trace = {name: _rows(np.concatenate(parts, axis=-1), keep) for name, parts in caught.items()}
        for i, attention in enumerate(outputs.attentions):
            trace[f"layer.{i}.probabilities"] = _flat_probabilities(_numpy(attention), batch)
        if self._head.task == "feature-extraction" and self._head.linears:
            trace["head.0"] = _numpy(outputs.pooler_output)
        return trace

    def _inputs(self, batch: PackedBatch, keep: np.ndarray) -> dict[str, Any]:
        torch = _torch()

        def padded(values: np.ndarray) -> Any:
            rows = np.zeros(keep.shape, np.int64)
            rows[keep] = values
            return torch.from_numpy(rows)

        inputs = {"input_ids": padded(batch.input_ids), "attention_mask": torch.from_numpy(keep.astype(np.int64))}
        if batch.token_types is not None:
            inputs["token_type_ids"] = padded(batch.token_types)
        if self._head.task == "multiple-choice":  # one question, whose choices the texts are
            inputs = {name: values[None] for name, values in inputs.items()}
        return inputs

    def _watched(self) -> Iterator[tuple[str, Any, bool]]:
        """(intermediate, module, whether it is the module's input)."""
        for name, modules in self._modules.items():
            if name.startswith("head."):
                continue
            intermediate = {"embed.norm": "embed"}.get(name, name.replace("output_norm", "output"))
            if not name.endswith("ffn_in"):
                yield from ((intermediate, module, False) for module in modules)
            if name.endswith("attention_out"):
                yield name.replace("attention_out", "context"), modules[0], True
            if name.endswith("ffn_out"):
                yield name.replace("ffn_out", "ffn_in"), modules[0], True
        for j in range(len(self._head.linears)):
            following = self._modules.get(f"head.{j + 1}")
            yield f"head.{j}", (following or self._modules[f"head.{j}"])[0], following is not None


def _watch(module: Any, into: list[np.ndarray], is_input: bool) -> Any:
    if is_input:
        return module.register_forward_pre_hook(lambda _, inputs: into.append(_numpy(inputs[0])))
    return module.register_forward_hook(lambda _, inputs, output: into.append(_numpy(output)))


def _numpy(tensor: Any) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.element_size() == 2 else tensor).numpy()
    return array


def _rows(values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """[B, L, N] → the [T, N] of the tokens; [B, N], one row for each text, stays."""
    return values[keep] if values.ndim == 3 else values


def _flat_probabilities(attention: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """[B, H, L, L] → each text's own [H, l, l], flat, end to end."""
    lengths = np.diff(batch.cu_seqlens)
    return np.concatenate([each[:, :n, :n].ravel() for each, n in zip(attention, lengths, strict=True)])


def plain_arithmetic(precision: str, budget: Budget) -> Arithmetic | None:
    """How a step alone is rounded; for fp32 and fp64 it is plain float32."""
    return None if precision in ("fp32", "fp64") else budget.arithmetic
