"""The fastest exact way to run DistilBERT, BERT encoders and their fine-tunes, with no conversion and no torch.

pipe = distilfast.pipeline("text-classification", "path/or/hub-id")
pipe("What a film.")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from distilfast.batch import DeviceBatch, PackedBatch
    from distilfast.config import ModelConfig
    from distilfast.engine import Engine
    from distilfast.errors import BackendError, ConfigError, DistilfastError, InputError, WeightsError
    from distilfast.machine import info
    from distilfast.outputs import Outputs
    from distilfast.pipelines import pipeline
    from distilfast.pipelines.multi_head import MultiHeadPipeline
    from distilfast.tokenizer import Tokenizer

# Public name -> its module, which is imported on first use: `import distilfast` alone imports nothing heavy.
_PUBLIC = {
    "BackendError": "errors",
    "ConfigError": "errors",
    "DeviceBatch": "batch",
    "DistilfastError": "errors",
    "Engine": "engine",
    "InputError": "errors",
    "ModelConfig": "config",
    "MultiHeadPipeline": "pipelines.multi_head",
    "Outputs": "outputs",
    "PackedBatch": "batch",
    "Tokenizer": "tokenizer",
    "WeightsError": "errors",
    "info": "machine",
    "pipeline": "pipelines",
}

__all__ = [
    "BackendError",
    "ConfigError",
    "DeviceBatch",
    "DistilfastError",
    "Engine",
    "InputError",
    "ModelConfig",
    "MultiHeadPipeline",
    "Outputs",
    "PackedBatch",
    "Tokenizer",
    "WeightsError",
    "info",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # that of pyproject.toml, which the installation has written down
        from importlib.metadata import version

        return version("distilfast")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'distilfast' has no attribute {name!r}")
    return getattr(import_module(f"distilfast.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
