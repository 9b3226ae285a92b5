"""distilfast, through its public engine: the CPU backend, and on a GPU the backends "triton" and "cuda" as variants.

Options of the backend "cuda" that are off until they are known to be faster are variants too: "cuda clusters".

On a GPU a batch is packed once, as the others' ids are put on the device once; a call copies the packed ids there,
runs, and puts padding back where the input has it, as the outputs of the others have it. "triton replay" repeats the
forward before where the input is the same: it times the graph without the call around it.
"""

from __future__ import annotations

from dataclasses import dataclass
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

REPLAY = "triton replay"

ENTRIES = (
    *(("", precision) for precision in backends.module("cpu").PRECISIONS),
    *((name, precision) for name in GPU_BACKENDS for precision in backends.module(name).PRECISIONS),
    *((REPLAY, precision) for precision in backends.module("triton").PRECISIONS),
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
        forward = _on_device(engine, repeats=contestant.variant == REPLAY)
    return Loaded(forward, str(engine.info()["detail"]))


def _backend(contestant: Contestant) -> str:
    return contestant.variant.split()[0] if contestant.variant else "cpu"


def _on_device(engine: distilfast.Engine, *, repeats: bool) -> Forward:
    """``repeats``: an input that is that of the call before repeats the forward of the call before."""
    import torch

    prepared: dict[tuple[Any, ...], _Prepared] = {}
    last: tuple[Any, Any] = (None, None)  # the key and the hidden state of the call before

    def forward(ids: Any, mask: Any) -> Any:
        nonlocal last
        key = (ids.data_ptr(), *ids.shape, None if mask is None else mask.data_ptr())
        if key not in prepared:
            prepared[key] = _Prepared.of(ids, mask)
        batch, places = prepared[key].batch, prepared[key].places
        if repeats and key == last[0]:
            engine._backend.repeat()
        else:
            last = key, torch.as_tensor(engine.forward_on_device(batch, hidden=True)[0], device=ids.device)
        hidden = last[1]
        if places is None:
            return hidden.view(*ids.shape, -1)
        padded = hidden.new_zeros(ids.numel(), hidden.shape[1])
        return padded.index_copy_(0, places, hidden).view(*ids.shape, -1)

    return forward


@dataclass(frozen=True)
class _Prepared:
    """What is made of a padded batch once; ``ids`` and ``mask`` are kept, or their addresses could be another batch's.

    ``places``: of the tokens among all positions, on the device, so that a forward need not wait to count them.
    """

    batch: PackedBatch
    places: Any
    ids: Any
    mask: Any

    @classmethod
    def of(cls, ids: Any, mask: Any) -> _Prepared:
        keep = None if mask is None else mask.bool()
        batch = PackedBatch.from_padded(ids.cpu().numpy(), None if keep is None else keep.cpu().numpy())
        return cls(batch, None if keep is None else keep.flatten().nonzero().flatten(), ids, mask)
