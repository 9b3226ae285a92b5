"""The cost curve of a pipeline's engine: measured on it once, and kept beside the packed weights for later starts.

A kept curve is that of equal facts: the model's shape, how and on what it is computed, and how it was measured. Weights
of equal shape take equal time, so two checkpoints of one shape share a curve. What has changed about the machine since,
the batcher learns while it serves.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distilfast import __version__, cache
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.machine import processor
from distilfast.pipelines.base import Pipeline
from distilfast.serving import cost
from distilfast.serving.cost import Curve, measure

_KIND = "curve"


def curve_of(pipe: Pipeline) -> tuple[Curve, str]:
    """What forwards of ``pipe`` cost, and where that is from, as a phrase; some 20 forwards where none is kept."""
    facts = _facts(pipe)
    kept = _parsed(cache.read_note(_KIND, facts))
    if kept is not None:
        return kept, "cache"
    curve = measured_curve(pipe)
    return curve, f"measured, {cache.keep_note(_KIND, facts, asdict(curve))}"


def _parsed(note: Any) -> Curve | None:
    """None for what is no curve."""
    try:
        return Curve(tuple(note["tokens"]), tuple(note["seconds"]), note["attention"])
    except (KeyError, TypeError, InputError):
        return None


def _facts(pipe: Pipeline) -> dict[str, Any]:
    """Everything that decides what a forward takes, as far as it can be known without running one."""
    engine = pipe.engine
    info, config = engine.info(), engine.config
    computed = ("backend", "precision", "isa", "arithmetic", "attention_arithmetic", "threads", "detail")
    return {
        "version": __version__,
        "measured": [cost.TOKENS, cost.SHORT, cost.LONG, cost.ROUNDS],
        "machine": [platform.machine(), processor()],
        "computed": {name: info.get(name) for name in computed},
        "model": {name: value for name, value in info["model"].items() if name != "directory"},
        "head": [len(engine.head.linears), config.num_labels, config.activation, config.token_types],
    }


def measured_curve(pipe: Pipeline) -> Curve:
    """What forwards of ``pipe`` cost, from some 20 of them."""
    text = pipe.tokenizer.encode("a").ids
    token = text[len(text) // 2]
    return measure(lambda lengths: _forward(pipe.engine, lengths, token), longest=pipe.engine.config.max_positions)


def one_token(engine: Engine) -> None:
    """The shortest forward, which shows that ``engine`` computes."""
    _forward(engine, [1], 0)


def _forward(engine: Engine, lengths: Sequence[int], token: int) -> None:
    batch = PackedBatch.from_sequences([[token] * length for length in lengths])
    if engine.head.linears:
        engine.logits(batch)
    else:
        engine.encode(batch)
