"""Whether the models fit into the memory that the container may have, by their shapes, before they are loaded."""

from __future__ import annotations

from distilfast.checkpoint import resolve
from distilfast.config import ModelConfig
from distilfast.errors import ConfigError
from distilfast.machine import memory_limit
from distilfast.serving.http.settings import ServedModel, Settings

_BYTES = {"fp64": 8, "fp32": 4, "bf16x3": 4, "bf16": 2, "int8": 1}
"""Of a packed weight, by precision; the embedding tables are float32 in each but fp64."""


def check_memory(settings: Settings) -> None:
    """Raises ConfigError where the weights and the caches alone are more than the container's limit.

    The kernel would end the process while it loads, without a word.
    """
    limit = memory_limit()
    if limit is None:
        return
    weights = sum(least_bytes(model, settings) for model in settings.models)
    caches = settings.workers * settings.cache_bytes
    if weights + caches > limit:
        raise ConfigError(
            f"The models need {weights / 1e6:.0f} MB and the caches {caches / 1e6:.0f} MB, "
            f"and the memory limit of this container is {limit / 1e6:.0f} MB."
        )


def least_bytes(model: ServedModel, settings: Settings) -> int:
    """Of the packed encoder; 0 where it is not in this memory, or its shape is not known before it is loaded."""
    directory = resolve(model.path, revision=model.revision, allow_pickle=settings.allow_pickle)
    path = directory / "config.json"
    if model.precision not in _BYTES or model.backend in ("cuda", "triton") or not path.exists():
        return 0
    config = ModelConfig.from_file(path)
    tables = (config.vocab_size + config.max_positions + config.token_types) * config.hidden_size
    layer = config.hidden_size * (4 * config.hidden_size + 2 * config.ffn_size)
    each = _BYTES[model.precision]
    return max(4, each) * tables + each * config.num_layers * layer
