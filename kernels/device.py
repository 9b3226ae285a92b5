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
_OLDEST_DRIVER = 12_030  # whose graphs have dependent launches: of CUDA 12.3
_INTERPRETED_PROGRAMS = 3  # few, so that each program of a persistent grid has several blocks to compute


@dataclass(frozen=True)
class Gpu:
    """What the kernels make of a device for one model; chosen once, when the model is loaded.

    ``family`` of ``tuning``; ``multiprocessors``: programs of the persistent linears over tensor descriptors, 0 where
    there are none; ``dependent_launches``: see ``dependent``; ``detail``: which it is, and why, for ``Engine.info``.
    """

    family: str
    multiprocessors: int = 0
    dependent_launches: bool = False
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
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is the build for CPUs; a GPU needs the one for CUDA or ROCm."
        return "torch sees no GPU; nvidia-smi, or rocm-smi, has to list one first."
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
    programs, detail = 0, f"persistent linears from {tuning.FEWEST_FOR_DESCRIPTORS} tokens on"
    if reason := _no_descriptors(capability, config, is_half):
        detail = f"no persistent linears: {reason}"
    elif device.type == "cpu":
        programs = _INTERPRETED_PROGRAMS
    else:
        programs = torch.cuda.get_device_properties(device).multi_processor_count
    no_dependent = _no_dependent_launches(device, capability)
    detail += f", no dependent launches: {no_dependent}" if no_dependent else ", dependent launches"
    return Gpu(name, programs, no_dependent is None, detail)


def _no_dependent_launches(device: torch.device, capability: tuple[int, int]) -> str | None:
    """None, or why every kernel waits for the end of the one before."""
    import torch

    if device.type == "cpu":
        return "the interpreter runs one kernel at a time"
    if torch.version.hip or capability < (9, 0):
        return "they need an NVIDIA GPU from Hopper on"
    if torch._C._cuda_getDriverVersion() < _OLDEST_DRIVER:
        return "they need a driver of CUDA 12.3 or newer"
    return None


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
