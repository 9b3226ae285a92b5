"""Ourselves, through the public engine: the CPU backend, and on a GPU the backends "triton" and "cuda" as variants.

On a GPU a batch is packed once, as the others' ids are put on the device once; a call copies the packed ids there,
runs, and where there is padding spreads the rows out again, for the others answer so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distilfast
from benchmarks.engines import Contestant, Forward, Loaded, no_gpu
from distilfast import PackedBatch, backends

GPU_BACKENDS = ("triton", "cuda")


ENTRIES = (
    *(("", precision) for precision in backends.module("cpu").PRECISIONS),
    *((name, precision) for name in GPU_BACKENDS for precision in backends.module(name).PRECISIONS),
)


def unavailable(contestant: Contestant) -> str | None:
    """Why the backend cannot run here, or None."""
    name = contestant.variant or "cpu"
    if (name == "cpu") != (contestant.device == "cpu"):
        return f"The backend {name} is not for --device {contestant.device}."
    return backends.module(name).unavailable() or (no_gpu() if name in GPU_BACKENDS else None)


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    engine = distilfast.Engine.from_pretrained(
        directory,
        task="feature-extraction",
        precision=contestant.precision,
        backend=contestant.variant or "cpu",
        threads=threads,
    )
    forward: Forward = lambda ids, mask: engine(ids, mask).last_hidden_state  # noqa: E731
    if contestant.device == "cuda":
        forward = _on_device(engine)
    return Loaded(forward, str(engine.info()["detail"]))


def _on_device(engine: distilfast.Engine) -> Forward:
    import torch

    packed: dict[tuple[int, ...], tuple[PackedBatch, Any]] = {}

    def pack(ids: Any, mask: Any) -> tuple[PackedBatch, Any]:
        keep = None if mask is None else mask.bool()
        return PackedBatch.from_padded(ids.cpu().numpy(), None if keep is None else keep.cpu().numpy()), keep

    def forward(ids: Any, mask: Any) -> Any:
        key = (ids.data_ptr(), *ids.shape)
        if key not in packed:
            packed[key] = pack(ids, mask)
        batch, keep = packed[key]
        hidden = torch.as_tensor(engine.forward_on_device(batch, hidden=True)[0], device="cuda")
        if keep is None:
            return hidden.view(*ids.shape, -1)
        padded = hidden.new_zeros(*ids.shape, hidden.shape[1])
        padded[keep] = hidden
        return padded

    return forward
