"""``embed``: one vector for each text, as the checkpoint's own modules make it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, overload

import numpy as np

from distilfast.arguments import count, flag, one_of
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan, Prepared
from distilfast.pipelines.encoders import EncodingOptions, TextEncoder
from distilfast.pipelines.progress import shown
from distilfast.pipelines.quantized_vectors import quantized
from distilfast.pipelines.sentence_modules import (
    POOLINGS,
    SentenceModules,
    normalized,
    read_modules,
    read_prompts,
    text_settings,
)
from distilfast.pipelines.windows import checked_rule, merged
from distilfast.tokenizer import Encoding, Tokenizer
from distilfast.types import Task


class EmbeddingPipeline(Pipeline):
    """A pipeline on hidden states, with ``embed`` beside its task."""

    engine_task: ClassVar[Task] = "feature-extraction"

    @overload
    def embed(
        self,
        texts: Iterator[str],
        pooling: str | Sequence[str] | None = ...,
        normalize: bool | None = ...,
        truncation: bool | str | None = ...,
        max_length: int | None = ...,
        batch_size: int | None = ...,
        window: int | None = ...,
        stride: int | None = ...,
        over_windows: str = ...,
    ) -> Iterator[np.ndarray]: ...

    @overload
    def embed(
        self,
        texts: str | Sequence[str],
        pooling: str | Sequence[str] | None = ...,
        normalize: bool | None = ...,
        truncation: bool | str | None = ...,
        max_length: int | None = ...,
        batch_size: int | None = ...,
        window: int | None = ...,
        stride: int | None = ...,
        over_windows: str = ...,
    ) -> np.ndarray: ...

    def embed(
        self,
        texts: str | Sequence[str] | Iterator[str],
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        over_windows: str = "mean",
    ) -> np.ndarray | Iterator[np.ndarray]:
        """One vector for each text, float32 [B, D] (float64 on the reference backend); [] gives [0, D].

        By default the vectors are those of sentence-transformers: ``pooling=None`` runs what the checkpoint's
        modules.json lists, Pooling, Dense and Normalize, and without that file the mean, normalised. One of "cls",
        "mean", "max", "mean_sqrt_len_tokens", "weightedmean" and "lasttoken", or several to concatenate, pools the
        token rows so and runs nothing else of modules.json. ``normalize`` divides the result by its Euclidean length,
        or with False leaves out a division at the end; None is the checkpoint's own, and True with a ``pooling``.

        Texts are cut to ``max_length`` tokens, by default to ``max_seq_length`` of sentence_bert_config.json or else to
        the tokeniser's own limit, and at most to the model's positions, unless ``truncation`` is false; its
        ``do_lower_case``, and a default prompt of config_sentence_transformers.json, hold too.

        ``window`` or ``stride`` read the whole of a long text instead, in windows of ``window`` tokens, two neighbours
        having ``stride`` tokens in common (0). ``over_windows``: the pooled vectors of a text's windows are merged
        before Dense and Normalize, to their "mean", each weighing the tokens of its window, or their "max"imum.

        An iterator of texts gives an iterator of vectors [D]; at most ``batch_size`` texts (64) are read ahead. There
        is no ``errors`` here, since an array has no place for one. Raises InputError, and ConfigError for a checkpoint
        whose modules are not run.
        """
        plan, modules = self._embedding(pooling, normalize, truncation, max_length, window, stride, over_windows)
        if batch_size is not None:
            plan = replace(plan, batch_size=count("batch_size", batch_size))
        if isinstance(texts, Iterator):
            return self._answers(texts, plan)
        return self._stacked(texts, plan, modules)

    def prepare_vector(
        self,
        text: str,
        *,
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        over_windows: str = "mean",
    ) -> Prepared:
        """One text, for a caller that forms batches itself; its answer is its vector of ``embed``, float32 [D]."""
        plan, _ = self._embedding(pooling, normalize, truncation, max_length, window, stride, over_windows)
        return self._prepared(text, plan)

    def _embedding(
        self,
        pooling: Any,
        normalize: Any,
        truncation: Any,
        max_length: Any,
        window: Any,
        stride: Any,
        over_windows: Any,
    ) -> tuple[Plan, SentenceModules]:
        """How ``embed`` runs with these arguments."""
        modules = self._modules_for(pooling, normalize)
        reads_windows = window is not None or stride is not None
        options = self._encoding_options(
            truncation=not reads_windows if truncation is None else truncation,
            max_length=max_length,
            own_limit=modules.max_length,
            window=window,
            stride=stride,
        )
        return self._vectors(modules, options, checked_rule(over_windows)), modules

    def stream_vectors(self, texts: Iterable[str], *, first: int = 0) -> Iterator[Any]:
        """A vector of ``embed`` for each text in order; see ``stream`` for errors and ``first``."""
        options = self._encoding_options(truncation=True, own_limit=self._modules.max_length)
        plan = self._vectors(self._modules, options, "mean")
        return self._answers(texts, replace(plan, return_errors=True, first=first))

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """What ``SentenceTransformer.encode`` returns: [D] for one text, [B, D] for a list.

        A numpy array, with ``convert_to_tensor`` a torch tensor, with ``convert_to_numpy=False`` a list of tensors.
        ``prompt``, or the one that the checkpoint has under ``prompt_name``, is put before every text, instead of its
        default. ``truncate_dim`` keeps the first so many numbers of each vector, and ``normalize_embeddings`` then
        divides it by its length, beyond what the checkpoint's own modules do. ``precision``: see ``quantized``; of
        "int8" and "uint8" the values depend on all texts of the call. Raises InputError.
        """
        vectors = self._prompted_vectors(sentences, prompt_name, prompt, batch_size)
        if truncate_dim is not None:
            vectors = vectors[:, : count("truncate_dim", truncate_dim)]
        if flag("normalize_embeddings", normalize_embeddings):
            vectors = normalized(vectors)
        found: Any = quantized(vectors, precision)
        as_tensor = flag("convert_to_tensor", convert_to_tensor)
        if as_tensor or not flag("convert_to_numpy", convert_to_numpy):
            import torch

            found = torch.from_numpy(np.ascontiguousarray(found))
            found = found if as_tensor else list(found)
        return found[0] if isinstance(sentences, str) else found

    def _prompted_vectors(
        self, sentences: str | Sequence[str], prompt_name: Any, prompt: Any, batch_size: Any
    ) -> np.ndarray:
        modules = self._modules
        if prompt is None and prompt_name is not None:
            directory = self.engine.directory
            prompts = {} if directory is None else read_prompts(directory)[0]
            prompt = prompts[one_of("prompt_name", prompt_name, prompts)]
        if prompt is not None:
            if not isinstance(prompt, str):
                raise InputError(f"prompt is {prompt!r}; a string is needed.")
            modules = replace(modules, prompt=prompt)
        options = self._encoding_options(truncation=True, own_limit=modules.max_length)
        plan = self._vectors(modules, options, "mean")
        if batch_size is not None:
            plan = replace(plan, batch_size=count("batch_size", batch_size))
        return self._stacked(sentences, plan, modules)

    def _stacked(self, texts: str | Iterable[str], plan: Plan, modules: SentenceModules) -> np.ndarray:
        """[B, D]."""
        several = [texts] if isinstance(texts, str) else self._listed(texts)
        vectors = list(shown(self._answers(several, plan), several))
        return np.stack(vectors) if vectors else np.empty((0, modules.width), np.float32)

    def _modules_for(self, pooling: Any, normalize: Any) -> SentenceModules:
        """The checkpoint's modules, or those that the call asks for."""
        modules = self._modules if pooling is None else self._chosen_modules(pooling)
        if normalize is None:
            return modules
        kept = modules.steps[:-1] if modules.steps and modules.steps[-1] is normalized else modules.steps
        return replace(modules, steps=(*kept, normalized) if flag("normalize", normalize) else kept)

    @property
    def width(self) -> int:
        """Numbers of a vector of ``embed``, as the checkpoint's own modules make it."""
        return self._modules.width

    # Each is made on first use, without the lock of cached_property, which a forked child could wait for.
    _stored_modules: SentenceModules | None = None
    _lowercased_tokenizer: Tokenizer | None = None

    @property
    def _modules(self) -> SentenceModules:
        if self._stored_modules is None:
            engine = self.engine
            width, directory = engine.config.hidden_size, engine.directory
            self._stored_modules = read_modules(directory, width, allow_pickle=engine.allow_pickle)
        return self._stored_modules

    def _chosen_modules(self, pooling: str | Sequence[str]) -> SentenceModules:
        names = pooling if isinstance(pooling, (list, tuple)) else [pooling]
        chosen = tuple(one_of("pooling", name, POOLINGS) for name in names)
        if not chosen:
            raise InputError(f"pooling names none; there are {', '.join(POOLINGS)}.")
        settings = () if self.engine.directory is None else text_settings(self.engine.directory)
        return SentenceModules(self.engine.config.hidden_size * len(chosen), chosen, (normalized,), *settings)

    def _tokenizer_for(self, modules: SentenceModules) -> Tokenizer:
        return self._lowercased if modules.lowercase else self.tokenizer

    @property
    def _lowercased(self) -> Tokenizer:
        if self._lowercased_tokenizer is None:
            self._lowercased_tokenizer = self.tokenizer.lowercased()
        return self._lowercased_tokenizer

    def _vectors(self, modules: SentenceModules, options: EncodingOptions, rule: str) -> Plan:
        """From texts to vectors [D]; the modules after the pooling read one vector for each text."""
        tokenizer = self._tokenizer_for(modules)
        encode = TextEncoder(tokenizer, options, modules.prompt)
        skip = 0
        if modules.prompt and not modules.pool_prompt:  # all of its tokens but the last [SEP]
            skip = len(TextEncoder(tokenizer, options)([modules.prompt])[0][0].ids) - 1

        if options.stride is None:  # a window each: the vectors of a batch are finished together

            def finished(_: Sequence[Encoding], batch: PackedBatch) -> Iterable[np.ndarray]:
                return modules.finished(modules.pooled(self._rows(batch), skip))

            return Plan(encode, finished)

        def compute(_: Sequence[Encoding], batch: PackedBatch) -> Iterable[np.ndarray]:
            return modules.pooled(self._rows(batch), skip)

        def combine(_: str, windows: Sequence[Encoding], pooled: Sequence[np.ndarray]) -> np.ndarray:
            vector: np.ndarray = modules.finished(merged(pooled, windows, rule)[None])[0]
            return vector

        return Plan(encode, compute, combine)

    def _rows(self, batch: PackedBatch) -> list[np.ndarray]:
        """[L, D] of each text."""
        return np.split(self.engine.encode(batch), batch.cu_seqlens[1:-1])
