"""The result of calling an engine, with the field names of transformers."""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Outputs:
    """The results of one forward; a field that the task does not have, or that was not asked for, is None.

    ``outputs.logits``, ``outputs["logits"]`` and ``outputs[0]`` as with ``ModelOutput`` of transformers.

    B sequences, L columns of the input, D hidden size, C labels or vocabulary. Rows of padding are zeros.
    Arrays are numpy float32 (float64 from the reference backend), or torch tensors where torch came in.
    """

    last_hidden_state: Any = None  # [B, L, D]: feature-extraction
    pooler_output: Any = None  # [B, D]: feature-extraction with BERT, where a pooler is stored
    logits: Any = None  # [B, C], [B, L, C], or [B, choices]
    start_logits: Any = None  # [B, L]: question-answering
    end_logits: Any = None  # [B, L]
    hidden_states: Any = None  # layers + 1 times [B, L, D]
    attentions: Any = None  # layers times [B, H, L, L]

    def __getitem__(self, key: str | int | slice) -> Any:
        """A field by its name, or by its number among those that are not None."""
        return self.to_dict()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def keys(self) -> KeysView[str]:
        """The names of the fields that are not None; iteration gives them too, as in transformers."""
        return self.to_dict().keys()

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in the order above."""
        return tuple(self.to_dict().values())

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
