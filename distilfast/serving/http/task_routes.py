"""The routes of the other tasks, with the options and answers of their pipelines."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from distilfast.serving.http import bodies
from distilfast.serving.http.service import Service
from distilfast.serving.http.tei import answers


def routes(service: Service) -> APIRouter:
    """One for each task, on the models of ``service``."""
    router = APIRouter(responses=bodies.errors(bodies.Error))

    @router.post("/fill-mask")
    async def fill_mask(body: bodies.FillMask, request: Request) -> Any:
        """The most likely words at each mask of each text."""
        return await _of_task(service, request, body, "fill-mask")

    @router.post("/ner")
    async def ner(body: bodies.Ner, request: Request) -> Any:
        """The entities of each text."""
        return await _of_task(service, request, body, "token-classification")

    @router.post("/zero-shot")
    async def zero_shot(body: bodies.ZeroShot, request: Request) -> Any:
        """The candidate labels of each text with their scores, best first."""
        found = await _of_task(service, request, body, "zero-shot-classification")
        return [_scored(each) for each in found] if isinstance(body.inputs, list) else _scored(found)

    @router.post("/question-answering")
    async def question_answering(body: bodies.QuestionAnswering, request: Request) -> Any:
        """The answer to each question."""
        return await _of_task(service, request, body, "question-answering")

    return router


async def _of_task(service: Service, request: Request, body: Any, task: str) -> Any:
    """The pipeline's own answers: one for one input, a list for a list."""
    name, pipe = service.model(body.model, (task,))
    pipe.check_names(body.parameters)

    def submit(given: Any, options: dict[str, Any]) -> Future[Any]:
        given = given if isinstance(given, str) else given.model_dump()
        return service.ready.submit(given, model=name, **(body.parameters | options))

    several = isinstance(body.inputs, list)
    found = await answers(service, request, body, submit, body.inputs if several else [body.inputs])
    return _plain(found if several else found[0])


def _scored(answer: dict[str, Any]) -> Any:
    """The pipeline's answer as huggingface_hub reads it; an error as it is."""
    if "error" in answer:
        return answer
    pairs = zip(answer["labels"], answer["scores"], strict=True)
    return [{"label": label, "score": score} for label, score in pairs]


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value
