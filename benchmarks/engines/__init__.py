"""The contestants, one module for each library, under its name.

A module has ``ENTRIES``, pairs (variant, precision), and two functions: ``unavailable(contestant) -> str | None``, why
it cannot run here, in one sentence; and ``load(contestant, directory, threads, scratch) -> Loaded``, which prepares the
checkpoint with no manual step. What takes long to prepare is kept in ``scratch`` and reused. The precision is
what the library computes in, and ``load`` raises RuntimeError where it would run in another one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

Forward = Callable[[Any, Any], Any]
"""(ids int64 [B, L], mask int64 [B, L], 1 where a token counts) -> last hidden state [B, L, D].

numpy on the CPU. On the GPU torch tensors, where the answer stays, and None for a mask without padding.
"""

DEVICES = ("cpu", "cuda")
MODULES = (
    "distilfast",
    "transformers",
    "torch_compile",
    "torch_quantized",
    "torchao",
    "zentorch",
    "onnxruntime",
    "openvino",
    "ctranslate2",
)


class Loaded(NamedTuple):
    """A contestant that is ready, and ``detail``: what runs, in its own words ("avx512 fp32, 2 threads")."""

    forward: Forward
    detail: str


@dataclass(frozen=True)
class Contestant:
    """One library in one precision on one device; ``variant`` distinguishes two ways of using it ("sdpa", "eager")."""

    library: str
    precision: str
    variant: str = ""
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"

    @property
    def name(self) -> str:
        """For rows: "transformers sdpa"."""
        return f"{self.library} {self.variant}".strip()

    @property
    def module(self) -> ModuleType:
        """Where it is loaded."""
        return import_module(f"benchmarks.engines.{self.library}")


def contestants(device: str = "cpu") -> list[Contestant]:
    """All of them, distilfast first; ``unavailable`` says which cannot run on ``device``."""
    return [
        Contestant(library, precision, variant, device)
        for library in MODULES
        for variant, precision in import_module(f"benchmarks.engines.{library}").ENTRIES
    ]


def missing(*packages: str) -> str | None:
    """The sentence for packages that are not installed, or None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed." if absent else None


def only_on_cpu(contestant: Contestant) -> str | None:
    """The sentence for a library that is compared on the CPU alone, or None."""
    return None if contestant.device == "cpu" else f"{contestant.name} is compared on the CPU only."


def no_gpu() -> str | None:
    """The sentence for a machine on which torch finds no GPU, or None."""
    if reason := missing("torch"):
        return reason
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device."
