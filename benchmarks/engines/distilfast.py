"""distilfast, through its public engine: the CPU backend, and on a GPU the backends "triton" and "cuda" as variants.

Options of the backend "cuda" that are off until they are known to be faster are variants too: "cuda clusters".

On a GPU a batch is packed once, as the others' ids are put on the device once; a call copies the packed ids there,
runs, and puts padding back where the input has it, as the outputs of the others have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distilfast
from benchmarks.engines import Contestant, Forward, Loaded, no_gpu
from distilfast import PackedBatch, backends

GPU_BACKENDS = ("triton", "cuda")
OPTIONS = {
    "cuda persistent": ("PERSISTENT", ("fp16", "bf16", "int8")),
    "cuda clusters": ("CLUSTERS", ("fp32", "fp16", "bf16")),
}
"""A variant: what is switched on in the backend's module, and the precisions that have it."""

ENTRIES = (
    *(("", precision) for precision in backends.module("cpu").PRECISIONS),
    *((name, precision) for name in GPU_BACKENDS for precision in backends.module(name).PRECISIONS),
    *((variant, precision) for variant, (_, precisions) in OPTIONS.items() for precision in precisions),
)


def unavailable(contestant: Contestant) -> str | None:
    """Why the backend cannot run here, or None."""
    name = _backend(contestant)
    if (name == "cpu") != (contestant.device == "cpu"):
        return f"The backend {name} is not for --device {contestant.device}."
    reason = backends.module(name).unavailable() or (no_gpu() if name in GPU_BACKENDS else None)
    if (
        reason is None
        and contestant.variant == "cuda clusters"
        and backends.module(name).extension().architecture() < 90
    ):
        return "The device has no clusters of blocks; they need compute capability 9.0 or newer."
    return reason


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``. An option stays on: the contestant has a process of its own."""
    if contestant.variant in OPTIONS:
        setattr(backends.module("cuda"), OPTIONS[contestant.variant][0], True)
    engine = distilfast.Engine.from_pretrained(
        directory,
        task="feature-extraction",
        precision=contestant.precision,
        backend=_backend(contestant),
        threads=threads,
    )
    forward: Forward = lambda ids, mask: engine(ids, mask).last_hidden_state  # noqa: E731
    if contestant.device == "cuda":
        forward = _on_device(engine)
    return Loaded(forward, str(engine.info()["detail"]))


def _backend(contestant: Contestant) -> str:
    return contestant.variant.split()[0] if contestant.variant else "cpu"


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
