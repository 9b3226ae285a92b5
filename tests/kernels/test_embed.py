"""embed: LN(word[id] + position[p] (+ token_type[s])) against float64."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from identities import each_isa

from distilfast import _cpu, reference
from distilfast.batch import PackedBatch


@each_isa("embed")
@pytest.mark.parametrize("width", [1, 16, 33, 384, 768])
@pytest.mark.parametrize("types", [False, True])
def test_against_the_reference(isa, normal, rng, width, types):
    word, position, kind = normal(50, width), normal(20, width), normal(2, width)
    weight, bias = normal(width), normal(width)
    sequences = [rng.integers(0, 50, length) for length in (1, 20, 7, 16)]
    kinds = [rng.integers(0, 2, len(s)) for s in sequences] if types else None
    batch = PackedBatch.from_sequences(sequences, kinds)
    got = _cpu.embed(
        batch.input_ids, batch.positions, batch.token_types, word, position, kind if types else None, weight, bias,
        eps=1e-3, isa=isa, threads=2,
    )  # fmt: skip
    tensors = {"embed.word": word, "embed.position": position, "embed.norm.weight": weight, "embed.norm.bias": bias}
    tensors |= {"embed.token_type": kind} if types else {}
    truth = reference.embed(batch, {name: tensor.astype(np.float64) for name, tensor in tensors.items()}, 1e-3)
    x = word[batch.input_ids] + position[batch.positions]
    x = x + kind[batch.token_types] if types else x
    assert naive.error(got, truth) <= naive.allowed(naive.layer_norm(x, weight, bias, 1e-3), truth)


@each_isa("embed")
def test_no_types_given_means_all_zero(isa, normal):
    word, position, kind, ones = normal(5, 24), normal(5, 24), normal(2, 24), np.ones(24, np.float32)
    ids = np.arange(5, dtype=np.int32)
    arguments = (word, position, kind, ones, ones)
    without = _cpu.embed(ids, ids, None, *arguments, eps=1e-12, isa=isa)
    assert np.array_equal(without, _cpu.embed(ids, ids, np.zeros_like(ids), *arguments, eps=1e-12, isa=isa))
