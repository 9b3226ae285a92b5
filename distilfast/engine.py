"""The engine: a loaded checkpoint that maps token ids to hidden states and to the output of its head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilfast import backends, integers
from distilfast.adapters import open_model
from distilfast.arguments import count, flag
from distilfast.backends.base import Backend, DeviceBatches, DeviceResults, Trace
from distilfast.backends.shared import HeadBackend, SharedEncoder
from distilfast.batch import DeviceBatch, PackedBatch
from distilfast.checkpoint import Checkpoint, Stored
from distilfast.config import ModelConfig, environment_threads
from distilfast.errors import BackendError, InputError
from distilfast.heads import Head
from distilfast.outputs import Outputs
from distilfast.tokenizer import Tokenizer
from distilfast.types import BackendName, Precision, Task
from distilfast.weights import Weights, check_same_encoder, fit_weights


class Engine:
    """A DistilBERT or BERT checkpoint, loaded for one task on one backend; safe to call from several threads."""

    def __init__(
        self,
        weights: Weights,
        head: Head,
        *,
        precision: Precision = "fp32",
        backend: BackendName = "auto",
        threads: int | None = None,
        directory: Path | None = None,
        encoder: SharedEncoder | None = None,
    ) -> None:
        """From loaded weights; most callers use ``from_pretrained``. ``encoder``: that of several engines."""
        if threads is not None:
            threads = count("threads", threads)
        self.config: ModelConfig = weights.config
        self.head = head
        self.precision = precision
        self.directory = directory
        path = None if directory is None else str(directory.absolute())  # as long as the working directory is known
        self._opened_with = path, {"task": head.task, "precision": precision, "backend": backend, "threads": threads}
        if encoder is None:
            choice = backends.choose(backend, precision)
            self._why = choice.why
            self._backend: Backend = backends.create(choice, threads or environment_threads())
        else:
            self._why = "several heads on one encoder"
            self._backend = HeadBackend(encoder)
        self._backend.load(weights, head, precision)
        last = f"head.{len(head.linears) - 1}.bias"
        self._head_columns = len(weights.tensors[last]) if head.linears else 0
        self._tokenizer: Tokenizer | None = None
        self._tokenizer_directory = directory
        self.allow_pickle = True  # of what is read later from the checkpoint's directory

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        task: Task | None = None,
        precision: Precision = "fp32",
        backend: BackendName = "auto",
        threads: int | None = None,
        revision: str | None = None,
        allow_pickle: bool = True,
    ) -> Engine:
        """Load a local directory or a hub id as it is, with no conversion; a LoRA directory merged with its base.

        ``task`` is one of ``distilfast.heads.TASKS``; None takes the one that the checkpoint was saved for.
        ``precision``: "fp32", "bf16x3", "bf16" or "int8" on backend cpu; "fp32", "bf16" or "fp16" on triton; "fp32",
        "bf16", "fp16" or "int8" on cuda; "fp64" on reference. ``threads``: None for DISTILFAST_THREADS or all cores
        that affinity and the cgroup quota allow. ``allow_pickle``: whether torch may read the tensors
        of a checkpoint without safetensors. Raises ConfigError, WeightsError, BackendError or InputError.
        """
        opened = open_model(model, task, revision=revision, allow_pickle=flag("allow_pickle", allow_pickle))
        engine = cls(
            opened.weights,
            opened.head,
            precision=precision,
            backend=backend,
            threads=threads,
            directory=opened.directory,
        )
        engine._tokenizer_directory = opened.tokenizer
        engine.allow_pickle = allow_pickle
        return engine

    @classmethod
    def with_heads(
        cls,
        models: Sequence[str | Path],
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> tuple[SharedEncoder, list[Engine]]:
        """An engine for each of ``models``, checkpoints of the same encoder with different heads, which is loaded once.

        The engines have the answers, bit for bit, of ones loaded by themselves, on the CPU; each computes every row of
        the last layer. Within ``with encoder.encoded(batch):`` all of them read one pass through the encoder. Raises
        WeightsError where tensors of the encoders differ, naming one, and the errors of ``from_pretrained``.
        """
        if not models:
            raise InputError("There is no model; at least one is needed.")
        if threads is not None:
            threads = count("threads", threads)
        opened = [open_model(model, None) for model in models]
        for other in opened[1:]:
            check_same_encoder(opened[0].weights, other.weights, (opened[0].directory, other.directory))
        encoder = SharedEncoder(opened[0].weights, precision, threads or environment_threads())
        engines = []
        for each in opened:
            engine = cls(
                each.weights, each.head, precision=precision, threads=threads, directory=each.directory, encoder=encoder
            )
            engine._tokenizer_directory = each.tokenizer
            engines.append(engine)
        return encoder, engines

    @classmethod
    def from_tensors(
        cls,
        config: dict[str, Any],
        tensors: Mapping[str, Any],
        *,
        task: Task | None = None,
        precision: Precision = "fp32",
        backend: BackendName = "auto",
        threads: int | None = None,
    ) -> Engine:
        """From what ``config.json`` says and torch tensors by the names of a checkpoint, a model's ``state_dict()``.

        The engine has copies: later changes of the tensors change no answer. It has no tokeniser, and cannot be
        pickled. Arguments and errors are those of ``from_pretrained``.
        """
        known = ModelConfig.from_dict(config)
        checkpoint = Checkpoint({name: Stored.of_torch(tensor) for name, tensor in tensors.items()})
        weights, head = fit_weights(checkpoint, "the model", known, task or known.task)
        return cls(weights, head, precision=precision, backend=backend, threads=threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies hold no weights: they load the checkpoint again, by its path and with the same arguments.

        Raises InputError for an engine made from bare weights.
        """
        if self.directory is None:
            raise InputError("This engine was made from bare weights; it cannot be pickled or copied.")
        path, options = self._opened_with
        return _reopened, (path, options | {"allow_pickle": self.allow_pickle})

    @property
    def task(self) -> Task:
        """The task of the loaded head."""
        return self.head.task

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's own tokeniser, read on first use."""
        if self._tokenizer is None:
            if self._tokenizer_directory is None:
                raise InputError("This engine was made from bare weights; it has no tokeniser.")
            self._tokenizer = Tokenizer.from_directory(self._tokenizer_directory)
        return self._tokenizer

    def share_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Use ``tokenizer``, which another engine has, in the place of an equal one."""
        self._tokenizer = tokenizer

    def info(self) -> dict[str, Any]:
        """Backend and why it was chosen, ISA, threads, precision, memory, and the model's shape."""
        config = self.config
        return {
            "backend": self._backend.name,
            "backend_why": self._why,
            "detail": self._backend.detail,
            "precision": self.precision,
            **self._backend.info(),
            "model": {
                "directory": str(self.directory),
                "model_type": config.model_type,
                "task": self.task,
                "layers": config.num_layers,
                "width": config.hidden_size,
                "heads": config.num_heads,
                "ffn": config.ffn_size,
                "vocabulary": config.vocab_size,
                "positions": config.max_positions,
            },
        }

    def encode(self, batch: PackedBatch) -> np.ndarray:
        """The last hidden state of every token, [T, D], not pooled.

        T tokens in the order of ``batch.input_ids``, D hidden size; float32 (float64 on the reference backend). The
        head is not computed. Raises InputError for a batch that does not fit the model, and BackendError for one that
        the backend cannot run.
        """
        return _computed(self._forward(batch, None, hidden=True)[0])

    def logits(
        self, batch: PackedBatch, *, rows: np.ndarray | None = None, columns: np.ndarray | None = None
    ) -> np.ndarray:
        """The output of the head, [R, N] or [R, C]; of the last layer only the rows that the head reads are computed.

        ``rows``: integers [R], strictly increasing, the tokens that the head reads. None: the first token of each
        sequence or all tokens, as ``head.rows`` says. ``columns``: integers [C], strictly increasing, the output
        columns to return out of N, say the logits of a few words; with the same bits as among all N. The CPU computes
        no others.

        N is the number of labels, the vocabulary for fill-mask, 2 (start and end) for question-answering, 1 for
        multiple-choice, and for feature-extraction the width of the pooler where a BERT checkpoint stores one. Results
        are float32 (float64 on the reference backend). Raises InputError for a checkpoint without a head, and for a
        batch, rows or columns that do not fit the model; BackendError for a batch that the backend cannot run.
        """
        return self._head_output(batch, rows, columns, hidden=False)[1]

    def encode_with_logits(
        self, batch: PackedBatch, *, rows: np.ndarray | None = None, columns: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What ``encode`` and ``logits`` return, from one pass through the encoder: [T, D] and [R, N].

        Arguments and errors are those of ``logits``. Every row of the last layer is computed.
        """
        hidden, output = self._head_output(batch, rows, columns, hidden=True)
        return _computed(hidden), output

    def trace(self, batch: PackedBatch, *, rows: np.ndarray | None = None) -> Trace:
        """Every named intermediate of one forward, in the order of computation.

        Names and shapes are those of ``distilfast.backends.base.Trace``; float32 (float64 on the reference backend).
        All rows of every layer are computed, and the head, where there is one, on ``rows`` as in ``logits``. Raises the
        errors of ``encode``, and InputError for ``rows`` that do not fit the batch.
        """
        trace: Trace = {}
        self._forward(batch, rows, hidden=True, trace=trace)
        return trace

    def _head_output(
        self, batch: PackedBatch, rows: np.ndarray | None, columns: np.ndarray | None, hidden: bool
    ) -> tuple[np.ndarray | None, np.ndarray]:
        if not self.head.linears:
            raise InputError(f"This checkpoint has no head for {self.task}; encode returns its hidden states.")
        columns = None if columns is None else self._checked_columns(columns)
        state, output = self._forward(batch, rows, hidden, columns=columns)
        return state, _computed(output)

    def _forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """``Backend.forward``, after a check of all that its kernels rely on; ``rows`` as in ``logits``."""
        self._check(batch)
        return self._backend.forward(batch, self._rows_of_head(batch, rows), hidden, trace, columns, names)

    def forward_on_device(
        self,
        batch: PackedBatch | DeviceBatch,
        rows: Any | None = None,
        hidden: bool = False,
        stream: int | None = None,
    ) -> tuple[Any, Any]:
        """Last hidden state and head output as arrays on the GPU, not copied: torch tensors, or arrays with DLPack.

        Either is None where ``hidden`` is false, or the checkpoint has no head. ``rows`` are those of ``logits``. With
        backend triton the next forward of this engine overwrites the arrays. The host does not wait for them;
        ``stream`` does, a handle, None for torch's current one. Raises BackendError for a batch that has to be run in
        pieces, and for a backend whose results are on the host anyway.

        Of a ``DeviceBatch``, whose ``rows`` are on the GPU too, the host knows only the sizes: wrong ids or lengths
        give NaN, and the result's ``wait()`` says what is wrong. Raises InputError for arrays that are not contiguous
        int32 or int64 on the model's GPU, and BackendError for a backend that takes ids from the host only.
        """
        backend = self._backend
        if not isinstance(backend, DeviceResults):
            raise BackendError(f"backend {backend.name} computes on the host; encode and logits have its results.")
        if isinstance(batch, DeviceBatch):
            if not isinstance(backend, DeviceBatches):
                raise BackendError(f"backend {backend.name} takes ids from the host only.")
            if rows is None and self.head.linears:
                rows = self.head.rows
            return backend.forward_from_device(batch, rows, hidden, stream)
        self._check(batch)
        return backend.forward_on_device(batch, self._rows_of_head(batch, rows), hidden, stream)

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Run each (batch, length) once, so that no later forward of its bucket compiles or captures anything."""
        for batch, length in shapes:
            sequences = [[0] * count("length", length)] * count("batch", batch)
            packed = PackedBatch.from_sequences(sequences)
            if self.task == "feature-extraction":
                self.encode(packed)
            if self.head.linears:
                self._head_output(packed, None, None, hidden=self.task == "feature-extraction")

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Outputs:
        """Run padded ids [B, L] ([B, choices, L] for multiple-choice), as transformers models are called.

        Each argument is a list, a numpy array or a torch tensor of integers; the mask, which can be of bools or floats
        too, is 1 where a token counts.
        ``token_type_ids`` are not read by DistilBERT, which has none. A head that reads the first token reads the
        first one that the mask keeps. Raises InputError with one sentence.
        """
        ids = _not_empty("input_ids", integers.integers("input_ids", input_ids))
        dimensions = 3 if self.task == "multiple-choice" else 2
        if ids.ndim != dimensions:
            shape = "[batch, choices, length]" if dimensions == 3 else "[batch, length]"
            raise InputError(f"input_ids has {ids.ndim} dimension(s); {self.task} needs {shape}.")
        mask, types = (
            None if values is None else _same_shape(name, _not_empty(name, read(name, values)), ids)
            for name, values, read in (
                ("attention_mask", attention_mask, integers.mask),
                ("token_type_ids", token_type_ids, integers.integers),
            )
        )
        _check_range("input_ids", ids, self.config.vocab_size)
        if types is not None and self.config.token_types:
            _check_range("token_type_ids", types, self.config.token_types)
        if dimensions == 3:
            self._check_choices(ids, mask)
        batch = PackedBatch.from_padded(*_flatten(ids, mask, types if self.config.token_types else None))
        states = self._names_of_states() if output_hidden_states else []
        attentions = self._names_of_attentions() if output_attentions else []
        trace: Trace | None = {} if states or attentions else None
        hidden, output = self._forward(
            batch, None, hidden=self.task == "feature-extraction", trace=trace, names={*states, *attentions}
        )
        if hidden is not None:
            outputs = Outputs(last_hidden_state=batch.unpack(hidden), pooler_output=output)
        else:
            outputs = self._answers(batch, _computed(output), ids.shape)
        # Taken from the trace one by one, so that no two copies of all of them are in memory.
        if trace is not None and states:
            outputs.hidden_states = tuple(batch.unpack(trace.pop(name)) for name in states)
        if trace is not None and attentions:
            heads = self.config.num_heads
            outputs.attentions = tuple(_unpack_probabilities(batch, trace.pop(name), heads) for name in attentions)
        return _as_torch(outputs, input_ids.device) if integers.is_torch(input_ids) else outputs

    def _answers(self, batch: PackedBatch, output: np.ndarray, shape: tuple[int, ...]) -> Outputs:
        if self.task == "multiple-choice":
            return Outputs(logits=output.reshape(shape[:2]))
        if self.head.rows == "first":
            return Outputs(logits=output)
        logits = batch.unpack(output)
        if self.task == "question-answering":
            return Outputs(start_logits=logits[..., 0].copy(), end_logits=logits[..., 1].copy())
        return Outputs(logits=logits)

    def _names_of_states(self) -> list[str]:
        return ["embed", *(f"layer.{i}.output" for i in range(self.config.num_layers))]

    def _names_of_attentions(self) -> list[str]:
        return [f"layer.{i}.probabilities" for i in range(self.config.num_layers)]

    def _rows_of_head(self, batch: PackedBatch, rows: np.ndarray | None) -> np.ndarray | None:
        """``rows``, checked, or for None those that the head reads by itself; None where there is no head."""
        if rows is not None:
            rows = integers.int32("rows", rows)
            if len(rows) and (rows[0] < 0 or rows[-1] >= batch.num_tokens or not integers.is_increasing(rows)):
                raise InputError(f"rows must be strictly increasing and lie within 0 to {batch.num_tokens - 1}.")
        if not self.head.linears or rows is not None:
            return rows if self.head.linears else None
        return batch.first_rows if self.head.rows == "first" else np.arange(batch.num_tokens, dtype=np.int32)

    def _checked_columns(self, columns: np.ndarray) -> np.ndarray:
        columns = integers.int32("columns", columns)
        if not len(columns) or columns[0] < 0 or not integers.is_increasing(columns):
            raise InputError("columns must be one row of numbers that are strictly increasing from 0 or more.")
        if columns[-1] >= self._head_columns:
            raise InputError(f"columns has {columns[-1]}; the head's columns are 0 to {self._head_columns - 1}.")
        return columns

    def _check(self, batch: PackedBatch) -> None:
        """Checks what the kernels rely on: indices inside their tables, lengths that add up."""
        if not isinstance(batch, PackedBatch):
            raise InputError(f"The batch is of type {type(batch).__name__}; a PackedBatch is needed.")
        if not batch.num_tokens:
            raise InputError("The batch is empty; at least one token is needed.")
        for name in ("positions", "token_types"):
            values = getattr(batch, name)
            if values is not None and len(values) != batch.num_tokens:
                raise InputError(f"{name} has {len(values)} entries; the batch has {batch.num_tokens} tokens.")
        ends = batch.cu_seqlens
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != batch.num_tokens or not integers.is_increasing(ends):
            raise InputError("cu_seqlens must be strictly increasing from 0 to the number of tokens.")
        self._check_numbers(batch, "input_ids", batch.input_ids, self.config.vocab_size)
        self._check_positions(batch)
        if batch.token_types is not None:
            if not self.config.token_types:
                raise InputError("The batch has token_types; the model has no table of them.")
            self._check_numbers(batch, "token_type_ids", batch.token_types, self.config.token_types)

    def _check_numbers(self, batch: PackedBatch, name: str, values: np.ndarray, size: int) -> None:
        if values.min() < 0 or values.max() >= size:
            token = int(np.argmax((values < 0) | (values >= size)))
            raise InputError(_outside(self._named(batch, token), name, values[token], size))

    def _check_positions(self, batch: PackedBatch) -> None:
        positions, size = batch.positions, self.config.max_positions
        if positions.min() < 0:
            token = int(np.argmax(positions < 0))
            raise InputError(f"{self._named(batch, token)} has position {positions[token]}; positions begin at 0.")
        if positions.max() >= size:
            token = int(np.argmax(positions >= size))
            first, end = batch.cu_seqlens[_sequence_of(batch, token) :][:2]
            longest = int(positions[first:end].max()) + 1
            raise InputError(f"{self._named(batch, token)} has {longest} tokens; the model has {size} positions.")

    def _check_choices(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        """What ``_check`` and ``PackedBatch`` would name by the row among all choices of all questions."""
        keep = np.ones(ids.shape, bool) if mask is None else mask
        lengths = np.where(keep.any(axis=-1), keep.shape[-1] - keep[..., ::-1].argmax(axis=-1), 0)
        for wrong, what in (
            (lengths == 0, "has an attention_mask of zeros; no token is left to attend to"),
            (lengths > self.config.max_positions, "has {} tokens; the model has {} positions"),
        ):
            if wrong.any():
                row, choice = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                sentence = what.format(lengths[row, choice], self.config.max_positions)
                raise InputError(f"Row {row}, choice {choice} {sentence}.")

    def _named(self, batch: PackedBatch, token: int) -> str:
        """The sequence that a token belongs to, as the caller counts it: by its row where the input was padded."""
        sequence = _sequence_of(batch, token)
        if batch.mask is None:
            return f"Sequence {sequence}"
        return f"Row {sequence}"


def _sequence_of(batch: PackedBatch, token: int) -> int:
    return int(np.searchsorted(batch.cu_seqlens, token, side="right")) - 1


def _reopened(directory: str, arguments: dict[str, Any]) -> Engine:
    return Engine.from_pretrained(directory, **arguments)


def _not_empty(name: str, array: np.ndarray) -> np.ndarray:
    if array.size == 0:
        raise InputError(f"{name} is empty; at least one token is needed.")
    return array


def _flatten(ids: np.ndarray, *others: np.ndarray | None) -> tuple[Any, ...]:
    """Each choice of [B, choices, L] as one sequence."""
    return tuple(None if array is None else array.reshape(-1, ids.shape[-1]) for array in (ids, *others))


def _same_shape(name: str, array: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if array.shape != ids.shape:
        raise InputError(f"{name} has shape {array.shape}; input_ids has {ids.shape}.")
    return array


def _check_range(name: str, array: np.ndarray, size: int) -> None:
    """For padded input, padding included."""
    if array.min() < 0 or array.max() >= size:
        index = np.unravel_index(int(np.argmax((array < 0) | (array >= size))), array.shape)
        row = f"Row {index[0]}" if array.ndim == 2 else f"Row {index[0]}, choice {index[1]}"
        raise InputError(_outside(row, name, array[index], size))


def _outside(where: str, name: str, value: int, size: int) -> str:
    return f"{where} of {name} has {value}; the model's table holds 0 to {size - 1}."


def _computed(array: np.ndarray | None) -> np.ndarray:
    """A result that was requested of the backend, which therefore is not None."""
    assert array is not None
    return array


def _unpack_probabilities(batch: PackedBatch, flat: np.ndarray, heads: int) -> np.ndarray:
    """Each sequence's [H, l, l], flat → [B, H, L, L], zeros where a row or a column is padding."""
    mask = batch.padded_mask
    size = mask.shape[1]
    padded = np.zeros((batch.num_sequences, heads, size, size), flat.dtype)
    begin = 0
    for b, keep in enumerate(mask):
        length = int(keep.sum())
        end = begin + heads * length * length
        padded[b][np.ix_(np.arange(heads), keep, keep)] = flat[begin:end].reshape(heads, length, length)
        begin = end
    return padded


def _as_torch(outputs: Outputs, device: Any) -> Outputs:
    """As torch tensors on the device of the ids; on the CPU without a copy."""
    import torch  # imported by the caller already, who passed a tensor

    def convert(value: Any) -> Any:
        return tuple(map(convert, value)) if isinstance(value, tuple) else torch.from_numpy(value).to(device)

    return Outputs(**{name: convert(value) for name, value in outputs.to_dict().items()})
