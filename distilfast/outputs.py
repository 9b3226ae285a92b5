"""What an engine answers with, under the field names of transformers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Outputs:
    """The results of one forward; a field that the task does not have, or nobody asked for, is None.

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

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def to_dict(self) -> dict[str, Any]:
        """The fields that are there."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
