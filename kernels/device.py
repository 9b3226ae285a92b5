"""Which devices the kernels run on. Importing this module needs neither torch nor triton."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distilfast.config import ModelConfig
from distilfast.kernels import tuning

if TYPE_CHECKING:
    import torch

OLDEST_TRITON = (3, 6)
_DESCRIPTOR_ALIGNMENT = 8  # elements of 16 bits: a row of a tensor descriptor is a multiple of 16 bytes
_INTERPRETED_PROGRAMS = 3  # few, so that each program of a persistent grid has several blocks to compute


@dataclass(frozen=True)
class Gpu:
    """What the kernels make of a device for one model; chosen once, when the model is loaded.

    ``family`` of ``tuning``; ``multiprocessors``: programs of the persistent linears over tensor descriptors, 0 where
    there are none; ``detail``: which it is, and why, for ``Engine.info``.
    """

    family: str
    multiprocessors: int = 0
    detail: str = ""


def unavailable() -> str | None:
    """None, or why the kernels cannot run here, in one sentence."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed (pip install distilfast[gpu])."
    try:
        import torch
        import triton
    except (ImportError, OSError) as error:
        return f"torch and triton cannot be imported: {error}."
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {triton.__version__} is too old; {'.'.join(map(str, OLDEST_TRITON))} or newer is needed."
    if is_interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU."
    if family(torch.device("cuda", torch.cuda.current_device())) is None:
        return f"{torch.cuda.get_device_name()} is too old or unknown; NVIDIA from Ampere on and AMD CDNA 3 are needed."
    return None


def is_interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def family(device: torch.device) -> str | None:
    """The family of ``tuning`` that a device belongs to; None for a GPU that is not supported."""
    import torch

    if device.type == "cpu":
        return "sm_90"  # interpreted with the tiles of a large GPU
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
        return name if name in tuning.FAMILIES else None
    return tuning.family(torch.cuda.get_device_capability(device))


def gpu_for(device: torch.device, config: ModelConfig, is_half: bool) -> Gpu:
    """What the kernels make of a supported device for a model and operands of 16 or of 32 bits."""
    import torch

    name = family(device)
    assert name is not None
    capability = (9, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
    if reason := _no_descriptors(capability, config, is_half):
        return Gpu(name, detail=f"no persistent linears: {reason}")
    programs = _INTERPRETED_PROGRAMS
    if device.type != "cpu":
        programs = torch.cuda.get_device_properties(device).multi_processor_count
    return Gpu(name, programs, f"persistent linears from {tuning.FEWEST_FOR_DESCRIPTORS} tokens on")


def _no_descriptors(capability: tuple[int, int], config: ModelConfig, is_half: bool) -> str | None:
    """None, or why linears have no use for tensor descriptors."""
    import torch

    if torch.version.hip or tuning.family(capability) != "sm_90":
        return "they need the tensor descriptors of a data-centre GPU from Hopper on"
    if not is_half:
        return "fp32 operands have none"
    if config.hidden_size % _DESCRIPTOR_ALIGNMENT or config.ffn_size % _DESCRIPTOR_ALIGNMENT:
        return f"a width is no multiple of {_DESCRIPTOR_ALIGNMENT}"
    return None
