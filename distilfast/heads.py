"""A head as data: which token rows it reads, and up to three linears on top of them.

A new head needs no new kernel, and a backend computes only the rows that the head reads. Source of each head: the
``DistilBertFor…`` and ``BertFor…`` classes of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from distilfast.arguments import listed
from distilfast.config import ModelConfig
from distilfast.errors import InputError
from distilfast.types import Task

TASKS: tuple[Task, ...] = get_args(Task)


Activation = Literal["none", "gelu", "relu", "tanh"]


@dataclass(frozen=True)
class HeadLinear:
    """``y = act(x Wᵀ + b)``, then LayerNorm(y) where ``norm`` is set.

    Its tensors in ``Weights`` are ``head.<i>.weight`` [N, K] and ``.bias`` [N], and for the norm
    ``head.<i>.norm.weight`` and ``.bias`` [N].
    """

    activation: Activation = "none"
    norm: bool = False


@dataclass(frozen=True)
class Head:
    """``rows``: "all" token rows or the "first" of each sequence; ``linears`` in the order of application."""

    task: Task
    rows: Literal["first", "all"]
    linears: tuple[HeadLinear, ...]


def head_for(config: ModelConfig, task: Task, *, pooler: bool = False) -> Head:
    """The head of ``task`` on an encoder of this type.

    ``pooler`` says whether a BERT feature-extraction checkpoint stores a pooler; DistilBERT has none.
    Raises InputError for a task that has no head here.
    """
    if task not in TASKS:
        raise InputError(f"task {task!r} is not known; {listed(task, TASKS)}.")
    bert = config.model_type == "bert"
    plain = HeadLinear()
    # DistilBERT's pre_classifier is followed by ReLU; BERT's pooler by tanh.
    first = (HeadLinear("tanh" if bert else "relu"), plain)
    linears: dict[Task, tuple[HeadLinear, ...]] = {
        "feature-extraction": (HeadLinear("tanh"),) if bert and pooler else (),
        "fill-mask": (HeadLinear(config.activation, norm=True), plain),
        "text-classification": first,
        "multiple-choice": first,
        "token-classification": (plain,),
        "question-answering": (plain,),
    }
    reads_first = task in ("text-classification", "multiple-choice", "feature-extraction")
    return Head(task, "first" if reads_first else "all", linears[task])
