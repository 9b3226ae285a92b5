"""An intent service: each utterance gets its intent before a deadline, or is refused at once.

    python examples/intent_service.py                  # answers a few utterances, which arrive all at once
    python examples/intent_service.py --port 8100      # a line in, a line of JSON out, as by: nc 127.0.0.1 8100

An intent is a few example utterances; --intents takes a file {"intent": ["utterance", …], …}. Printed is the intent of
the nearest example, null where none is near:

    {"text": "my card has not come yet", "intent": "card_delivery", "score": 0.7893}
    {"text": "…", "error": "The request is refused. It would be answered in 72.0 ms.", "retry_after": 0.025}
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

import distilfast
from distilfast.errors import DeadlineError, InputError, OverloadError
from distilfast.serving import Batcher

INTENTS = {
    "card_delivery": ["When will my new card arrive?", "I am still waiting for my card."],
    "lost_card": ["I lost my card.", "Somebody stole my bank card, please block it."],
    "exchange_rate": ["What is the exchange rate?", "How many euros do I get for a dollar?"],
}
UTTERANCES = ["my card has not come yet", "I cannot find my card anywhere", "dollars to pounds?", "sing me a song"]


class Service:
    """Answers utterances from coroutines; those that arrive together run in one batch."""

    def __init__(self, model: str, intents: dict[str, list[str]], deadline: float, least: float) -> None:
        pipe = distilfast.pipeline("feature-extraction", model)
        self.names = [name for name, examples in intents.items() for _ in examples]
        self.vectors = pipe.embed([text for examples in intents.values() for text in examples], normalize=True)
        self.batcher, self.least = Batcher(pipe, deadline=deadline), least

    async def answer(self, text: str) -> dict[str, Any]:
        try:
            scores = self.vectors @ await self.batcher.vector(text, normalize=True)
        except (OverloadError, DeadlineError, InputError) as error:
            return {"text": text, "error": str(error), "retry_after": getattr(error, "retry_after", None)}
        best = int(np.argmax(scores))
        intent = self.names[best] if scores[best] >= self.least else None
        return {"text": text, "intent": intent, "score": round(float(scores[best]), 4)}

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(await self.answer(line.decode("utf-8", "replace").strip())).encode() + b"\n")
            await writer.drain()
        writer.close()


async def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("utterances", nargs="*", default=UTTERANCES)
    parser.add_argument("--port", type=int, help="listen instead")
    parser.add_argument("--deadline-ms", type=float, default=50)
    parser.add_argument("--intents", type=Path, help="a JSON file")
    parser.add_argument("--least", type=float, default=0.4, help="cosine below which there is no intent")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="a hub id or a directory")
    given = parser.parse_args(arguments)
    intents = json.loads(given.intents.read_text("utf-8")) if given.intents else INTENTS
    service = Service(given.model, intents, given.deadline_ms / 1e3, given.least)
    if given.port is not None:
        server = await asyncio.start_server(service.converse, "127.0.0.1", given.port)
        print("listening at {}:{}".format(*server.sockets[0].getsockname()), flush=True)
        await server.serve_forever()
    for answer in await asyncio.gather(*map(service.answer, given.utterances)):
        print(json.dumps(answer))


if __name__ == "__main__":
    asyncio.run(main())
