"""The routes of text-embeddings-inference, with its requests and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

import distilfast
from distilfast.errors import DistilfastError, InputError
from distilfast.pipelines.base import Pipeline
from distilfast.pipelines.embedding import EmbeddingPipeline
from distilfast.serving.http import bodies
from distilfast.serving.http.service import Service

EMBEDDING, CLASSIFYING = ("feature-extraction", "sentence-similarity"), ("text-classification",)


def routes(service: Service) -> APIRouter:
    """All of them, on the models of ``service``."""
    router = APIRouter(responses=bodies.errors(bodies.Error))
    _add_vectors(router, service)
    _add_scores(router, service)
    _add_tokens(router, service)
    _add_info(router, service)
    return router


def _add_vectors(router: APIRouter, service: Service) -> None:
    @router.post("/embed")
    async def embed(body: bodies.Embed, request: Request) -> list[Any]:
        """A vector for each text."""
        name, pipe = service.model(body.model, EMBEDDING)
        width = checked_dimensions(pipe, body.dimensions)
        wanted = {"normalize": body.normalize, "truncation": body.truncate} | body.options()

        def submit(text: str, options: dict[str, Any]) -> Future[Any]:
            return service.ready.submit_vector(text, model=name, **(wanted | options))

        found = await answers(service, request, body, submit, _several(body.inputs))
        return [each if isinstance(each, dict) else shortened(each, width).tolist() for each in found]

    @router.post("/embed_all")
    async def embed_all(body: bodies.EmbedAll, request: Request) -> list[Any]:
        """A vector for each token of each text."""
        name, _ = service.model(body.model, ("feature-extraction",))

        def submit(text: str, options: dict[str, Any]) -> Future[Any]:
            return service.ready.submit(text, model=name, truncation=body.truncate, return_tensors=True, **options)

        found = await answers(service, request, body, submit, _several(body.inputs))
        return [each if isinstance(each, dict) else each[0].tolist() for each in found]

    @router.post("/similarity")
    async def similarity(body: bodies.Similarity, request: Request) -> list[float]:
        """The cosine of the source sentence's vector with each other's, from -1 to 1."""
        name, _ = service.model(body.model, EMBEDDING)
        if not body.inputs.sentences:
            raise InputError("There is no sentence to compare with the source sentence.")
        texts = [body.inputs.source_sentence, *body.inputs.sentences]

        def submit(text: str, options: dict[str, Any]) -> Future[Any]:
            return service.ready.submit_vector(text, model=name, **options)

        vectors = np.stack(await service.answers(request, submit, texts)).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        cosines: list[float] = (vectors[1:] @ vectors[0]).tolist()
        return cosines


def _add_scores(router: APIRouter, service: Service) -> None:
    @router.post("/predict")
    async def predict(body: bodies.Predict, request: Request) -> list[Any]:
        """Every label of each text or pair with its score, best first."""
        name, pipe = service.model(body.model, CLASSIFYING)
        inputs, alone = _texts_and_pairs(body.inputs)
        wanted = {"top_k": None, "truncation": body.truncate or None} | body.parameters
        if body.raw_scores:
            wanted["function_to_apply"] = "none"
        pipe.check_names(wanted)

        def submit(given: Any, options: dict[str, Any]) -> Future[Any]:
            return service.ready.submit(given, model=name, **(wanted | options))

        found = await answers(service, request, body, submit, inputs)
        return found[0] if alone and isinstance(found[0], list) else found

    @router.post("/rerank")
    async def rerank(body: bodies.Rerank, request: Request) -> list[dict[str, Any]]:
        """The texts, best first, each with its index and its score."""
        name, pipe = service.model(body.model, CLASSIFYING)
        if pipe.engine.config.num_labels != 1:
            raise InputError(f"Model {name!r} has {pipe.engine.config.num_labels} labels; a reranker has one.")
        function = "none" if body.raw_scores else "sigmoid"

        def submit(text: str, options: dict[str, Any]) -> Future[Any]:
            pair = {"text": body.query, "text_pair": text}
            return service.ready.submit(
                pair, model=name, top_k=None, function_to_apply=function, truncation=body.truncate or None, **options
            )

        found = await service.answers(request, submit, body.texts)
        ranks = [{"index": i, "score": labels[0]["score"]} for i, labels in enumerate(found)]
        if body.return_text:
            ranks = [each | {"text": body.texts[each["index"]]} for each in ranks]
        return sorted(ranks, key=lambda each: -each["score"])


def _add_tokens(router: APIRouter, service: Service) -> None:
    @router.post("/tokenize")
    async def tokenize(body: bodies.Tokenize) -> list[list[dict[str, Any]]]:
        """The tokens of each text: id, text, whether it is a special token, and where it is in the text."""
        _, pipe = service.model(body.model, tuple(each.task for each in service.ready.pipelines.values()))
        texts = _several(body.inputs)
        encoded = pipe.tokenizer.encode_batch(texts, add_special_tokens=body.add_special_tokens)
        return [_tokens(pipe, text, each) for text, each in zip(texts, encoded, strict=True)]

    @router.post("/decode")
    async def decode(body: bodies.Decode) -> list[str]:
        """The text of each list of ids."""
        _, pipe = service.model(body.model, tuple(each.task for each in service.ready.pipelines.values()))
        lists = [each if isinstance(each, list) else [each] for each in body.ids]
        if body.ids and isinstance(body.ids[0], int):
            lists = [[token for each in lists for token in each]]
        vocabulary = pipe.engine.config.vocab_size
        for i, ids in enumerate(lists):
            for token in ids:
                if not 0 <= token < vocabulary:
                    raise InputError(f"List {i} has the id {token}; the vocabulary has 0 to {vocabulary - 1}.")
        return [pipe.tokenizer.decode(ids, body.skip_special_tokens) for ids in lists]


def _add_info(router: APIRouter, service: Service) -> None:
    @router.get("/info")
    async def info() -> dict[str, Any]:
        """The models, and the limits of a request."""
        return {
            "version": distilfast.__version__,
            "max_client_batch_size": service.settings.most_texts,
            "max_body_bytes": service.settings.most_body_bytes,
            "deadline_ms": service.settings.deadline_ms,
            "workers": service.settings.workers,
            **_described(*next(iter(service.ready.pipelines.items()))),
            "models": [_described(name, pipe) for name, pipe in service.ready.pipelines.items()],
        }


def checked_dimensions(pipe: Pipeline, dimensions: int | None) -> int | None:
    """How many numbers of each vector are asked for; raises InputError where it has fewer."""
    if dimensions is not None:
        assert isinstance(pipe, EmbeddingPipeline)
        if dimensions > pipe.width:
            raise InputError(f"dimensions is {dimensions}; the vectors have {pipe.width}.")
    return dimensions


def shortened(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first ``dimensions`` numbers, divided by their Euclidean length, as OpenAI's models do it."""
    if dimensions is None:
        return vector
    kept = vector[:dimensions]
    length = float(np.linalg.norm(kept.astype(np.float64)))
    return (kept / length).astype(vector.dtype) if length else kept


async def answers(
    service: Service, request: Request, body: Any, submit: Callable[..., Future[Any]], inputs: Sequence[Any]
) -> list[Any]:
    """Of ``Service.answers``; with "errors": "return" an object with the sentence in the place of an error."""
    found = await service.answers(request, submit, inputs, return_errors=body.errors == "return")
    return [{"error": str(each)} if isinstance(each, DistilfastError) else each for each in found]


def _several(inputs: str | list[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else inputs


def _texts_and_pairs(inputs: str | list[str] | list[list[str]]) -> tuple[list[Any], bool]:
    """The inputs of the pipeline, and whether there is one."""
    if isinstance(inputs, str):
        return [inputs], True
    if inputs and all(isinstance(each, str) for each in inputs):
        return [_text_or_pair(inputs)], True  # type: ignore[arg-type]
    return [_text_or_pair(each) for each in inputs], False  # type: ignore[arg-type]


def _text_or_pair(texts: list[str]) -> Any:
    if len(texts) not in (1, 2):
        raise InputError(f"An input has {len(texts)} texts; one or a pair is needed.")
    return texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}


def _tokens(pipe: Pipeline, text: str, encoding: Any) -> list[dict[str, Any]]:
    special = encoding.special_mask
    return [
        {
            "id": token,
            "text": pipe.tokenizer.id_to_token(token) if special[i] else text[begin:end],
            "special": bool(special[i]),
            "start": None if special[i] else begin,
            "stop": None if special[i] else end,
        }
        for i, (token, (begin, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True))
    ]


def _described(name: str, pipe: Pipeline) -> dict[str, Any]:
    """As text-embeddings-inference describes a model."""
    config = pipe.engine.config
    labels = {str(i): label for i, label in config.id2label.items()}
    classifier = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    kind: dict[str, Any]
    if pipe.task in EMBEDDING:
        kind = {"embedding": {"pooling": "of the checkpoint"}}
    elif pipe.task == "text-classification":
        kind = {"reranker" if config.num_labels == 1 else "classifier": classifier}
    else:
        kind = {pipe.task: classifier if pipe.task == "token-classification" else {}}
    return {
        "model_id": name,
        "model_dtype": pipe.engine.precision,
        "model_type": kind,
        "task": pipe.task,
        "max_input_length": config.max_positions,
        "backend": pipe.engine.info()["detail"],
    }
