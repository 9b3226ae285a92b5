"""A head is data: which token rows it reads, and up to three linears on top of them.

So a new head costs no kernel, and a backend computes only the rows a head reads. Source of each head: the
``DistilBertFor…`` and ``BertFor…`` classes of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from distilfast.config import ModelConfig
from distilfast.errors import InputError

TASKS = (
    "feature-extraction",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
)


@dataclass(frozen=True)
class HeadLinear:
    """``y = act(x Wᵀ + b)``, then LayerNorm(y) where ``norm`` is set.

    Its tensors in ``Weights`` are ``head.<i>.weight`` [N, K] and ``.bias`` [N], and for the norm
    ``head.<i>.norm.weight`` and ``.bias`` [N].
    """

    activation: str = "none"  # none, gelu, relu, tanh
    norm: bool = False


@dataclass(frozen=True)
class Head:
    """``rows``: "all" token rows or the "first" of each sequence; ``linears`` in the order of application."""

    task: str
    rows: str
    linears: tuple[HeadLinear, ...]


def head_for(config: ModelConfig, task: str, *, pooler: bool = False) -> Head:
    """The head of ``task`` on an encoder of this type.

    ``pooler`` says whether a BERT feature-extraction checkpoint stores a pooler; DistilBERT has none.
    Raises InputError for a task that has no head here.
    """
    if task not in TASKS:
        raise InputError(f"task {task!r} is not known; distilfast has {', '.join(TASKS)}.")
    bert = config.model_type == "bert"
    plain = HeadLinear()
    # DistilBERT's pre_classifier is followed by ReLU; BERT's pooler by tanh.
    first = (HeadLinear("tanh" if bert else "relu"), plain)
    linears = {
        "feature-extraction": (HeadLinear("tanh"),) if bert and pooler else (),
        "fill-mask": (HeadLinear(config.activation, norm=True), plain),
        "text-classification": first,
        "multiple-choice": first,
        "token-classification": (plain,),
        "question-answering": (plain,),
    }[task]
    rows = "first" if task in ("text-classification", "multiple-choice", "feature-extraction") else "all"
    return Head(task, rows, linears)
