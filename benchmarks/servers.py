"""The servers that ``benchmarks.serving`` compares, each a process that answers ``POST /predict`` on a port.

    python -m benchmarks.servers NAME CHECKPOINT THREADS SCRATCH PORT

Each is what its users build: a web framework around the library, with the batching that the library or a few lines
offer. A body is ``{"inputs": text}``, an answer the best label.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.pipeline_worker import exported, quantised
from benchmarks.workloads import pad
from distilfast.config import ModelConfig
from distilfast.tokenizer import Tokenizer
from distilfast.weights import open_weights

MOST, WAIT_S = 16, 0.002
"""Of a dynamic batcher: texts of a batch at most, and how long the first of them waits for others."""

Answer = Callable[[list[str]], list[str]]


class Body(BaseModel):
    inputs: str


def transformers(checkpoint: str, threads: int, scratch: Path, port: int) -> None:
    """A pipeline of transformers behind FastAPI, whose threads call it one text at a time."""
    _in_threads(_transformers(checkpoint, threads), port)


def onnxruntime(checkpoint: str, threads: int, scratch: Path, port: int) -> None:
    """ONNX Runtime in dynamic int8 behind FastAPI, with a dynamic batcher."""
    _batched(_onnxruntime(checkpoint, threads, scratch), port)


def ctranslate2(checkpoint: str, threads: int, scratch: Path, port: int) -> None:
    """CTranslate2 in int8, whose own queue takes the requests of FastAPI's threads."""
    _in_threads(_ctranslate2(checkpoint, threads, scratch), port)


def ray(checkpoint: str, threads: int, scratch: Path, port: int) -> None:
    """Ray Serve with ``@serve.batch`` around a pipeline of transformers."""
    from ray import serve

    @serve.deployment(max_ongoing_requests=1000)
    class Model:
        def __init__(self) -> None:
            self.answer = _transformers(checkpoint, threads)

        @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=WAIT_S)
        async def answers(self, texts: list[str]) -> list[str]:
            return self.answer(texts)

        async def __call__(self, request: Any) -> dict[str, str]:
            return {"label": await self.answers((await request.json())["inputs"])}

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Model.bind(), route_prefix="/predict", blocking=True)


SERVERS = {"transformers": transformers, "onnxruntime": onnxruntime, "ctranslate2": ctranslate2, "ray": ray}


def _transformers(checkpoint: str, threads: int) -> Answer:
    import torch
    import transformers as library

    torch.set_num_threads(threads)
    pipe = library.pipeline("text-classification", checkpoint, device="cpu")
    return lambda texts: [each["label"] for each in pipe(texts, batch_size=len(texts), truncation=True)]


def _onnxruntime(checkpoint: str, threads: int, scratch: Path) -> Answer:
    import onnxruntime as library

    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    path = quantised(exported("text-classification", checkpoint, scratch), checkpoint)
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    encode, names = _encoder(checkpoint)

    def answer(texts: list[str]) -> list[str]:
        ids, mask = pad(encode(texts))
        [logits] = session.run(None, {"input_ids": ids, "attention_mask": mask})
        return [names[i] for i in logits.argmax(axis=1)]

    return answer


def _ctranslate2(checkpoint: str, threads: int, scratch: Path) -> Answer:
    """The library has no heads, so that of the checkpoint is three lines of numpy."""
    import ctranslate2 as library

    converted = scratch / "ctranslate2"
    if not converted.exists():
        library.converters.TransformersConverter(checkpoint).convert(str(converted))
    encoder = library.Encoder(str(converted), compute_type="int8_float32", intra_threads=threads)
    config = ModelConfig.from_file(Path(checkpoint) / "config.json")
    tensors = open_weights(Path(checkpoint), config, "text-classification")[0].tensors
    hidden = np.array(tensors["head.0.weight"]), np.array(tensors["head.0.bias"])
    output = np.array(tensors["head.1.weight"]), np.array(tensors["head.1.bias"])
    encode, names = _encoder(checkpoint)

    def answer(texts: list[str]) -> list[str]:
        state = np.array(encoder.forward_batch(encode(texts)).last_hidden_state)[:, 0]
        logits = np.maximum(state @ hidden[0].T + hidden[1], 0) @ output[0].T + output[1]
        return [names[i] for i in logits.argmax(axis=1)]

    return answer


def _encoder(checkpoint: str) -> tuple[Callable[[list[str]], list[list[int]]], dict[int, str]]:
    tokenizer = Tokenizer.from_directory(Path(checkpoint))
    names = ModelConfig.from_file(Path(checkpoint) / "config.json").id2label
    return lambda texts: [each.ids for each in tokenizer.encode_batch(texts, truncation=True, max_length=512)], names


def _in_threads(answer: Answer, port: int) -> None:
    """A text at a time, in FastAPI's threads."""
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Body) -> dict[str, str]:
        return {"label": answer([body.inputs])[0]}

    _run(app, port)


def _batched(answer: Answer, port: int) -> None:
    """A task collects what arrives within a moment, and a thread answers it."""
    app = FastAPI()
    queue: asyncio.Queue[tuple[str, asyncio.Future[str]]] = asyncio.Queue()

    async def serve_batches() -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await queue.get()]
            end = loop.time() + WAIT_S
            while len(batch) < MOST:
                try:
                    batch.append(await asyncio.wait_for(queue.get(), max(0.0, end - loop.time())))
                except (TimeoutError, asyncio.TimeoutError):
                    break
            labels = await asyncio.to_thread(answer, [text for text, _ in batch])
            for (_, future), label in zip(batch, labels, strict=True):
                if not future.done():
                    future.set_result(label)

    tasks: list[asyncio.Task[None]] = []

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, str]:
        if not tasks:
            tasks.append(asyncio.create_task(serve_batches()))
        future = asyncio.get_running_loop().create_future()
        await queue.put((body.inputs, future))
        return {"label": await future}

    _run(app, port)


def _run(app: FastAPI, port: int) -> None:
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def main() -> None:
    name, checkpoint, threads, scratch, port = sys.argv[1:]
    SERVERS[name](checkpoint, int(threads), Path(scratch), int(port))


if __name__ == "__main__":
    main()
