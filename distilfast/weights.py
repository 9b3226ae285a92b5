"""The checkpoint's tensor names, and the canonical ones every backend reads.

Canonical names (D hidden, F ffn, V vocab, P positions): ``embed.word`` [V, D], ``embed.position`` [P, D],
``embed.token_type`` [types, D] (BERT only), ``embed.norm``; per layer i ``layer.<i>.qkv`` [3D, D] (the rows of Q, K
and V, in that order), ``.attention_out`` [D, D], ``.attention_norm``, ``.ffn_in`` [F, D], ``.ffn_out`` [D, F],
``.output_norm``; and ``head.<j>`` as in heads.py. All but the three embedding tables are ``.weight`` and ``.bias``.
Sources: modeling_distilbert.py and modeling_bert.py of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilfast.checkpoint import Checkpoint, Stored, StoredFile, open_checkpoint, resolve
from distilfast.config import ModelConfig
from distilfast.errors import InputError, WeightsError
from distilfast.heads import TASKS, Head, head_for
from distilfast.types import Task

__all__ = [
    "StoredTensor",
    "StoredTensors",
    "Weights",
    "fit_weights",
    "layout",
    "load_weights",
    "open_weights",
    "plain_names",
    "resolve",
]

Modules = dict[str, tuple[str, str]]
"""Canonical name: (the checkpoint's module or modules, a letter for each dimension of the weight)."""

_TABLES = {
    "embed.word": ("embeddings.word_embeddings", "VD"),
    "embed.position": ("embeddings.position_embeddings", "PD"),
    "embed.token_type": ("embeddings.token_type_embeddings", "TD"),
}
_EMBED_NORM: Modules = {"embed.norm": ("embeddings.LayerNorm", "D")}

_LAYER: dict[str, Modules] = {
    "distilbert": {
        "qkv": ("attention.q_lin attention.k_lin attention.v_lin", "DD"),
        "attention_out": ("attention.out_lin", "DD"),
        "attention_norm": ("sa_layer_norm", "D"),
        "ffn_in": ("ffn.lin1", "FD"),
        "ffn_out": ("ffn.lin2", "DF"),
        "output_norm": ("output_layer_norm", "D"),
    },
    "bert": {
        "qkv": ("attention.self.query attention.self.key attention.self.value", "DD"),
        "attention_out": ("attention.output.dense", "DD"),
        "attention_norm": ("attention.output.LayerNorm", "D"),
        "ffn_in": ("intermediate.dense", "FD"),
        "ffn_out": ("output.dense", "DF"),
        "output_norm": ("output.LayerNorm", "D"),
    },
}
_LAYERS_AT = {"distilbert": "transformer.layer", "bert": "encoder.layer"}

_FIRST_LINEAR = {"distilbert": "pre_classifier", "bert": "pooler.dense"}
_MASKED_LM: dict[str, Modules] = {
    "distilbert": {
        "head.0": ("vocab_transform", "DD"),
        "head.0.norm": ("vocab_layer_norm", "D"),
        "head.1": ("vocab_projector", "VD"),
    },
    "bert": {
        "head.0": ("cls.predictions.transform.dense", "DD"),
        "head.0.norm": ("cls.predictions.transform.LayerNorm", "D"),
        "head.1": ("cls.predictions.decoder", "VD"),
    },
}
# Tensors that a checkpoint may hold and the loaded task does not read: buffers, and the heads of other tasks.
_KNOWN = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.",
    "cls.",
    "vocab_",
    "pre_classifier.",
    "classifier.",
    "qa_outputs.",
)
_ENCODER_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "ffn_size",
    "max_positions",
    "activation",
    "layer_norm_eps",
    "token_types",
)
"""What the configs of two models with the same encoder have in common."""
_LISTED = 8  # names of one kind in one error message


@dataclass(frozen=True)
class StoredTensor:
    """Where a checkpoint keeps one canonical tensor: ``pieces``, each of ``shape``, one above the next."""

    name: str
    pieces: tuple[str, ...]
    shape: tuple[int, ...]


class StoredTensors(Mapping[str, np.ndarray]):
    """The canonical tensors of a checkpoint, each made on first access: read, widened to float32, concatenated.

    ``files`` hold all of them, or are none where a pickle was read; ``needs`` says from which stored tensors each
    one is made.
    """

    def __init__(
        self,
        where: Path | str,
        needs: Sequence[StoredTensor],
        stored: dict[str, Stored],
        files: tuple[StoredFile, ...],
    ) -> None:
        self.files = files
        self.needs = {need.name: need for need in needs}
        self._where, self._stored = where, stored
        self._joined: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        pieces = [self._stored[piece] for piece in self.needs[name].pieces]
        if len(pieces) == 1:
            return pieces[0].array
        if name not in self._joined:
            self._joined[name] = np.concatenate([piece.array for piece in pieces])
        return self._joined[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.needs)

    def __len__(self) -> int:
        return len(self.needs)

    def check_finite(self) -> None:
        """Read every value; raises WeightsError naming the stored tensors with NaN or inf."""
        pieces = dict.fromkeys(piece for need in self.needs.values() for piece in need.pieces)
        _check_finite(self._where, {piece: self._stored[piece].array for piece in pieces})


@dataclass(frozen=True)
class Weights:
    """``tensors``: float32, C-contiguous, read-only where they are views of the file; canonical names."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]

    def check_finite(self) -> None:
        """Read every value that has not been checked yet; raises WeightsError for NaN or inf."""
        if isinstance(self.tensors, StoredTensors):
            self.tensors.check_finite()


def load_weights(directory: Path, config: ModelConfig, task: Task) -> tuple[Weights, Head]:
    """Read the encoder and the head of ``task`` from a local checkpoint.

    Raises WeightsError: one for a file that cannot be read, one that names everything missing, unexpected or
    misshapen, one that names the tensors with NaN or inf. A missing head is never invented.
    """
    weights, head = open_weights(directory, config, task)
    weights.check_finite()
    return Weights(config, dict(weights.tensors)), head


def open_weights(
    directory: Path, config: ModelConfig, task: Task, *, allow_pickle: bool = True
) -> tuple[Weights, Head]:
    """Like ``load_weights``, but values are read on first access; the caller has to call ``check_finite``."""
    return fit_weights(open_checkpoint(directory, allow_pickle=allow_pickle), directory, config, task)


def fit_weights(checkpoint: Checkpoint, where: Path | str, config: ModelConfig, task: Task) -> tuple[Weights, Head]:
    """The tensors of ``checkpoint`` that ``task`` needs; errors say ``where`` it is from. See ``open_weights``."""
    if task not in TASKS:
        raise InputError(f"task {task!r} is not known; distilfast has {', '.join(TASKS)}.")
    stored = plain_names(where, checkpoint.tensors, config.model_type)
    _add_implied(stored, config)
    pooler = "pooler.dense.weight" in stored
    needs = layout(config, task, pooler=pooler)
    used = {piece: need for need in needs for piece in need.pieces}
    missing = [piece for piece in used if piece not in stored]
    is_head = bool(missing) and all(used[piece].name.startswith("head.") for piece in missing)
    lacks = _no_head(config, task, missing, stored) if is_head else _listed("missing", missing)
    others = [
        *_listed("unexpected", sorted(name for name in set(stored) - set(used) if not name.startswith(_KNOWN))),
        *_listed("misshapen", [text for piece, need in used.items() if (text := _shape_error(piece, need, stored))]),
    ]
    if is_head and not others:  # a task that the model is not for
        raise WeightsError(f"In {where} {'; '.join(lacks)}.")
    if lacks or others:
        raise WeightsError(f"The tensors in {where} do not fit its config.json: {'; '.join(lacks + others)}.")
    tensors = StoredTensors(where, needs, stored, checkpoint.files)
    return Weights(config, tensors), head_for(config, task, pooler=pooler)


def check_same_encoder(one: Weights, other: Weights, directories: tuple[Path, Path]) -> None:
    """Raises WeightsError for two models whose encoders differ, naming a size or a tensor."""
    where = " and ".join(map(str, directories))
    for name in _ENCODER_FIELDS:
        values = getattr(one.config, name), getattr(other.config, name)
        if values[0] != values[1]:
            raise WeightsError(f"{where} have different encoders: {name} is {values[0]} and {values[1]}.")
    for name in one.tensors:
        if not name.startswith("head.") and not np.array_equal(one.tensors[name], other.tensors[name]):
            raise WeightsError(f"{where} have different encoders: {name} differs.")


def layout(config: ModelConfig, task: Task, *, pooler: bool = False) -> list[StoredTensor]:
    """Every tensor that encoder and head need; piece names without the ``distilbert.`` or ``bert.`` prefix."""
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.ffn_size,
        "P": config.max_positions,
        "T": config.token_types,
        "L": config.num_labels,
        "1": 1,
        "2": 2,
    }
    modules = dict(_EMBED_NORM)
    for i in range(config.num_layers):
        at = f"{_LAYERS_AT[config.model_type]}.{i}."
        for name, (parts, dimensions) in _LAYER[config.model_type].items():
            modules[f"layer.{i}.{name}"] = (" ".join(at + part for part in parts.split()), dimensions)
    modules |= _head_modules(config.model_type, task, pooler)
    tables = [
        StoredTensor(name, (f"{module}.weight",), tuple(sizes[letter] for letter in dimensions))
        for name, (module, dimensions) in _TABLES.items()
        if config.token_types or name != "embed.token_type"
    ]
    return tables + [
        StoredTensor(f"{name}.{kind}", tuple(f"{part}.{kind}" for part in parts.split()), shape)
        for name, (parts, dimensions) in modules.items()
        for kind, shape in (
            ("weight", tuple(sizes[letter] for letter in dimensions)),
            ("bias", (sizes[dimensions[0]],)),
        )
    ]


def _head_modules(model_type: str, task: Task, pooler: bool) -> Modules:
    first = (_FIRST_LINEAR[model_type], "DD")
    heads: dict[str, Modules] = {
        "feature-extraction": {"head.0": first} if pooler and model_type == "bert" else {},
        "fill-mask": _MASKED_LM[model_type],
        "text-classification": {"head.0": first, "head.1": ("classifier", "LD")},
        "multiple-choice": {"head.0": first, "head.1": ("classifier", "1D")},
        "token-classification": {"head.0": ("classifier", "LD")},
        "question-answering": {"head.0": ("qa_outputs", "2D")},
    }
    return heads[task]


def _shared(config: ModelConfig) -> list[tuple[str, str]]:
    """(name, the tensor that stands in where ``name`` is not stored).

    A stored projection always wins, as in the reference, which ties nothing where both are stored and differ.
    """
    projection = _MASKED_LM[config.model_type]["head.1"][0] + ".weight"
    word = "embeddings.word_embeddings.weight"
    bias = [("cls.predictions.decoder.bias", "cls.predictions.bias")]
    return bias + ([(projection, word), (word, projection)] if config.tied else [])


def _add_implied(stored: dict[str, Stored], config: ModelConfig) -> None:
    """Add what the reference makes of a checkpoint that leaves it out."""
    for name, same in _shared(config):
        if name not in stored and same in stored:
            stored[name] = stored[same]
    projection = _MASKED_LM[config.model_type]["head.1"][0]
    if f"{projection}.weight" in stored:
        stored.setdefault(f"{projection}.bias", Stored.of(lambda: np.zeros(config.vocab_size, np.float32)))
    if config.sinusoidal:
        table = _TABLES["embed.position"][0]
        stored.setdefault(f"{table}.weight", Stored.of(lambda: _sinusoids(config.max_positions, config.hidden_size)))


def _sinusoids(positions: int, width: int) -> np.ndarray:
    """float32 [P, D]: sines in even columns, cosines in odd ones; 2 j columns share a frequency of 10000^(-2j/D)."""
    columns = np.arange(width)
    angles = np.arange(positions)[:, None] / 10000.0 ** (2 * (columns // 2) / width)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


def plain_names(where: Path | str, tensors: dict[str, Stored], model_type: str) -> dict[str, Stored]:
    """Names without the model's prefix, and with today's names for a LayerNorm's ``gamma`` and ``beta``.

    Raises WeightsError for two tensors of one name, which says ``where`` they are.
    """
    plain: dict[str, Stored] = {}
    names: dict[str, str] = {}
    for stored_name, tensor in tensors.items():
        name = stored_name.removeprefix(f"{model_type}.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name in plain:
            raise WeightsError(f"{where} holds {names[name]} and {stored_name}, which are the same tensor's names.")
        plain[name], names[name] = tensor, stored_name
    return plain


def _no_head(config: ModelConfig, task: Task, missing: list[str], stored: dict[str, Stored]) -> list[str]:
    """The problem of a checkpoint that has another head, and the tasks that it can be loaded for."""
    fitting = [each for each in TASKS if all(piece in stored for need in layout(config, each) for piece in need.pieces)]
    has = f"; it can be loaded for {', '.join(fitting)}" if fitting else ""
    return [text + has for text in _listed(f"there is no complete {task} head; missing", missing)]


def _shape_error(piece: str, need: StoredTensor, stored: dict[str, Stored]) -> str | None:
    tensor = stored.get(piece)
    if tensor is None:
        return None
    if tensor.shape != need.shape:
        return f"{piece} is {list(tensor.shape)} and must be {list(need.shape)}"
    return None if tensor.dtype == np.float32 else f"{piece} is {tensor.dtype} and must be a 16- or 32-bit float"


def _listed(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{kind}: {', '.join(names[:_LISTED])}{more}"]


def _check_finite(where: Path | str, tensors: dict[str, np.ndarray]) -> None:
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        raise WeightsError(f"Tensors in {where} hold {_listed('NaN or inf', broken)[0]}.")


def _is_finite(tensor: np.ndarray) -> bool:
    with np.errstate(all="ignore"):  # the sum of finite numbers may overflow, so it only acquits
        return bool(np.isfinite(tensor.sum()) or np.isfinite(tensor).all())
