"""CTranslate2's encoder, converted from the checkpoint; it takes lengths where others take a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.engines import Contestant, Loaded, missing, only_on_cpu

_TYPES = {"fp32": "float32", "int8": "int8_float32"}
ENTRIES = tuple(("", precision) for precision in _TYPES)


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    return only_on_cpu(contestant) or missing("torch", "transformers", "ctranslate2")


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    import ctranslate2

    converted = scratch / "ctranslate2"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(str(directory)).convert(str(converted))
    encoder = ctranslate2.Encoder(str(converted), compute_type=_TYPES[contestant.precision], intra_threads=threads)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        tokens = ctranslate2.StorageView.from_array(ids.astype(np.int32))
        lengths = ctranslate2.StorageView.from_array(mask.sum(axis=1, dtype=np.int32))
        return np.array(encoder.forward_batch(tokens, lengths).last_hidden_state)

    return Loaded(run, f"{encoder.compute_type}, {threads} threads")
