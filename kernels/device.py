"""Which devices the kernels run on. Importing this module needs neither torch nor triton."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from distilfast.kernels import tuning

if TYPE_CHECKING:
    import torch

OLDEST_TRITON = (3, 6)


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
