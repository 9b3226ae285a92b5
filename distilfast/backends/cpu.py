"""The encoder in hand-written C++ kernels on the CPU: the default."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np

import distilfast
from distilfast import cache, quantize
from distilfast.arguments import listed
from distilfast.backends.base import Results, Trace
from distilfast.backends.extension import encoder_arguments, head_columns
from distilfast.batch import PackedBatch
from distilfast.config import environment
from distilfast.errors import BackendError
from distilfast.heads import Head
from distilfast.types import Precision
from distilfast.weights import StoredTensors, Weights

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16x3", "bf16", "int8")
_TABLES = ("embed.word", "embed.position", "embed.token_type")
_BODY = "linears,tables/v1"
"""How the cache's file is arranged; raise it with the bytes that ``_body`` writes."""
_LINE = 64  # bytes of a cache line, on which each table begins


def unavailable() -> str | None:
    """None, or why the extension cannot be used, in one sentence."""
    try:
        from distilfast import _cpu  # noqa: F401
    except ImportError as error:
        if find_spec("distilfast._cpu") is None:
            folder = Path(distilfast.__file__).parent
            return f"{folder} has no compiled _cpu; a wheel has it, and `pip install .` in a clone compiles it."
        return f"The extension distilfast._cpu cannot be imported: {error}; install distilfast again for this system."
    return None


def missing() -> dict[str, str | None]:
    """Every ISA there is, the fastest first, and why it cannot run here, as the end of a sentence, or None."""
    from distilfast import _cpu

    return dict(_cpu.isas())


def isas() -> dict[str, bool]:
    """Every ISA there is, the fastest first, and whether this machine has it."""
    return {name: why is None for name, why in missing().items()}


def chosen_isa() -> tuple[str, str]:
    """The ISA that runs here and why; raises BackendError where DISTILFAST_ISA asks for one that cannot."""
    forced = environment("ISA")
    lacking = missing()
    if forced is None:
        fastest = next(name for name, why in lacking.items() if why is None)
        return fastest, "the fastest that this processor has" + _unmeasured(fastest)
    if forced not in lacking:
        raise BackendError(f"DISTILFAST_ISA {forced!r} is not known; {listed(forced, lacking)}.")
    if why := lacking[forced]:
        runs = ", ".join(name for name, missing_why in lacking.items() if missing_why is None)
        raise BackendError(f"DISTILFAST_ISA {forced!r} {why}; it runs {runs}.")
    return forced, "DISTILFAST_ISA asks for it" + _unmeasured(forced)


def _unmeasured(isa: str) -> str:
    return "; not yet measured on ARM" if isa.startswith("neon") else ""


def available_cores() -> int:
    """Cores that the affinity mask and the cgroup's CPU quota allow."""
    from distilfast import _cpu

    return _cpu.available_cores()


def urgent() -> AbstractContextManager[None]:
    """Within it, what this thread computes goes before what others compute on the CPU; see ``_cpu.Urgent``."""
    from distilfast import _cpu

    return _cpu.Urgent()


class CpuBackend:
    """Runs ``csrc/cpu``; one object can be called from several threads at once, also after a fork."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        """``threads``: how many a forward uses; None for all available cores."""
        self._isa, self._why = chosen_isa()
        self.threads = threads or available_cores()

    @property
    def detail(self) -> str:
        """ISA, precision and threads."""
        return f"{self._isa} {self._precision}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """Pack the weights for the chosen ISA, or map what was packed; raises BackendError for an unknown precision."""
        if precision not in PRECISIONS:
            raise BackendError(
                f"precision {precision!r} is not available on backend cpu; it has {', '.join(PRECISIONS)}."
            )
        self._precision = precision
        from distilfast import _cpu

        entry = self._entry(weights, head_columns(weights, head))
        tensors = weights.tensors
        if entry.packed is None:
            weights.check_finite()
            if precision == "int8":
                tensors = dict(tensors) | quantize.channels(weights.config, tensors)
        encoder = partial(
            _cpu.Encoder, **encoder_arguments(weights, head), isa=self._isa, precision=precision, threads=self.threads
        )

        def over(body: np.ndarray) -> _cpu.Encoder:
            linears, tables = _parts(body, shapes)
            return encoder(tensors=_with(tables, tensors), packed=linears)

        shapes = _table_shapes(weights)
        if entry.packed is not None:
            self._encoder = over(entry.packed)
        else:
            # Copied where they are views of the checkpoint's file, which someone else may overwrite or truncate.
            tables = {name: np.require(tensors[name], requirements="O") for name in shapes}
            self._encoder = encoder(tensors=_with(tables, tensors), packed=None)
            kept = entry.keep(_body(self._encoder.packed, tables)) if entry.is_writable else None
            if kept is not None:  # so that this process shares their pages with later ones
                self._encoder = over(kept)
        self._packed_weights = entry.origin

    def _entry(self, weights: Weights, columns: list[int]) -> cache.Entry:
        """The cache's entry; the packed bytes depend on the layout, the model's shape and the stored tensors."""
        from distilfast import _cpu

        stored = weights.tensors if isinstance(weights.tensors, StoredTensors) else None
        needs = stored.needs.values() if stored else ()
        config = weights.config
        facts = {
            "layout": _cpu.packed_layout(self._isa, self._precision),
            "body": _BODY,
            "channels": quantize.VERSION if self._precision == "int8" else None,
            "shape": [config.num_layers, config.hidden_size, config.ffn_size, columns],
            "tensors": [[need.name, need.pieces, need.shape] for need in needs],
        }
        checksum = partial(_cpu.checksum, threads=self.threads)
        return cache.find(stored.files if stored else (), facts, checksum, self.threads)

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """See ``Backend.forward``; results are float32."""
        return self._encoder.forward(
            batch.input_ids, batch.positions, batch.token_types, batch.cu_seqlens, rows, hidden, trace, columns, names
        )

    def info(self) -> dict[str, object]:
        """ISA and why it was chosen, how linears and attention are computed, threads, where packed weights are from."""
        return {
            "isa": self._encoder.isa,
            "isa_why": self._why,
            "arithmetic": self._encoder.arithmetic,
            "attention_arithmetic": self._encoder.attention_arithmetic,
            "threads": self._encoder.threads,
            "packed_weights": self._packed_weights,
            "packed_bytes": self._encoder.packed_bytes,
            "scratch_bytes": self._encoder.scratch_bytes,
        }


def _table_shapes(weights: Weights) -> dict[str, tuple[int, int]]:
    """Of the embedding tables that the model has, without reading them."""
    config = weights.config
    rows = (config.vocab_size, config.max_positions, config.token_types)
    return {name: (count, config.hidden_size) for name, count in zip(_TABLES, rows, strict=True) if count}


def _with(tables: dict[str, np.ndarray], tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """``tensors`` with these tables in the place of their own."""
    return ChainMap(tables, cast("dict[str, np.ndarray]", tensors))


def _body(linears: np.ndarray, tables: dict[str, np.ndarray]) -> np.ndarray:
    """uint8: the packed linears, which are whole cache lines, then each float32 table from a cache line on."""
    pieces = [linears]
    for table in tables.values():
        pieces += [table.reshape(-1).view(np.uint8), np.zeros(-table.nbytes % _LINE, np.uint8)]
    return np.concatenate(pieces)


def _parts(body: np.ndarray, shapes: dict[str, tuple[int, int]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The linears and the tables of what ``_body`` made, as views."""
    sizes = {name: 4 * rows * width for name, (rows, width) in shapes.items()}
    at = linears = body.size - sum(size + -size % _LINE for size in sizes.values())
    tables = {}
    for name, size in sizes.items():
        tables[name] = body[at : at + size].view(np.float32).reshape(shapes[name])
        at += size + -size % _LINE
    return body[:linears], tables
