"""sentence-transformers on our kernels: ``accelerate`` a loaded model, or build one around ``Transformer``.

    fast = accelerate(SentenceTransformer("all-MiniLM-L6-v2"), precision="int8")
    SentenceTransformer(modules=[Transformer("all-MiniLM-L6-v2"), Pooling(384, "mean")])

Pooling, prompts and evaluation remain the library's. ``encode`` of
``distilfast.pipeline("feature-extraction", …)`` needs neither the library nor torch, and is faster.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.base.modules import Transformer as LibraryTransformer

from distilfast.arguments import count
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.integrations import transformers as models
from distilfast.types import BackendName, Precision


class Transformer(InputModule):  # type: ignore[misc] # the library is not followed
    """The first module of a ``SentenceTransformer``: texts to ``token_embeddings`` [B, L, D], zeros at padding.

    ``max_seq_length`` tokens of a text are read, by default the tokeniser's limit and at most the model's positions.
    """

    config_keys = ["max_seq_length"]  # noqa: RUF012 - the library wants a list

    def __init__(
        self,
        model: str | Path | Engine,
        max_seq_length: int | None = None,
        *,
        precision: Precision = "fp32",
        backend: BackendName = "auto",
        threads: int | None = None,
    ) -> None:
        """A directory, a hub id or a loaded engine; raises the errors of ``Engine.from_pretrained``."""
        super().__init__()
        if not isinstance(model, Engine):
            model = Engine.from_pretrained(
                model, task="feature-extraction", precision=precision, backend=backend, threads=threads
            )
        if model.task != "feature-extraction":
            raise InputError(f"The engine was loaded for {model.task}, not for feature-extraction.")
        self.engine = model
        self.tokenizer = model.tokenizer
        positions = model.config.max_positions
        limit = (
            self.tokenizer.max_length or positions
            if max_seq_length is None
            else count("max_seq_length", max_seq_length)
        )
        self.max_seq_length = min(limit, positions)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Padded ``input_ids``, ``attention_mask`` and ``token_type_ids`` [B, L] of texts and pairs."""
        texts = [(prompt or "") + text if isinstance(text, str) else text for text in inputs]
        encodings = self.tokenizer.encode_batch(texts, truncation=True, max_length=self.max_seq_length)
        longest = max(len(each.ids) for each in encodings)
        ids, mask, types = (np.zeros((len(encodings), longest), np.int64) for _ in range(3))
        for row, each in enumerate(encodings):
            ids[row, : len(each.ids)] = each.ids
            mask[row, : len(each.ids)] = 1
            types[row, : len(each.ids)] = each.type_ids
        features = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in features.items()}
        if prompt:  # poolings that leave the prompt out count its tokens, all but the last [SEP]
            found["prompt_length"] = len(self.tokenizer.encode(prompt).ids) - 1
        return found

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """``features`` with ``token_embeddings``."""
        types = features.get("token_type_ids") if self.engine.config.token_types else None
        batch = PackedBatch.from_padded(features["input_ids"], features["attention_mask"], types)
        features["token_embeddings"] = torch.from_numpy(batch.unpack(self.engine.encode(batch)))
        return features

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.engine.config.hidden_size

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Copy the files of the checkpoint; raises InputError for an engine that has none."""
        if self.engine.directory is None:
            raise InputError("This engine was made from bare weights; there is no checkpoint to save.")
        for path in self.engine.directory.iterdir():
            if path.is_file():
                shutil.copy(path, output_path)


def accelerate(
    model: SentenceTransformer,
    *,
    precision: Precision = "fp32",
    backend: BackendName = "auto",
    threads: int | None = None,
) -> SentenceTransformer:
    """A copy of ``model`` whose encoder runs on our kernels, with the weights that it has now.

    Its tokeniser, poolings, prompts and settings are those of ``model``, which stays as it is. Raises InputError where
    the first module is not the library's ``Transformer`` with a DistilBERT or BERT encoder, and the errors of
    ``Engine.from_pretrained``.
    """
    if not isinstance(model, SentenceTransformer) or not isinstance(model[0], LibraryTransformer):
        raise InputError("The model is no SentenceTransformer that begins with a Transformer module.")
    encoder = model[0].model
    fast = models.accelerate(encoder, precision=precision, backend=backend, threads=threads)
    copied: SentenceTransformer = copy.deepcopy(model, {id(encoder): fast})
    return copied.eval()
