"""embed: LN(word[id] + position[p] (+ token_type[s])) against float64."""

from __future__ import annotations

import numpy as np
import pytest
from elements import PRECISIONS, from_raw, rounded

from distilfast import reference
from distilfast.batch import PackedBatch
from tests.kernels import naive

EPS = 1e-12


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("width", [8, 50, 768, 1056])
def test_embed(extension, normal, rng, precision, types, width):
    ids, positions = (rng.integers(0, most, 19).astype(np.int32) for most in (90, 40))
    kinds = rng.integers(0, 2, 19).astype(np.int32) if types else None
    tensors = {
        "embed.word": normal(90, width),
        "embed.position": normal(40, width),
        "embed.norm.weight": normal(width),
        "embed.norm.bias": normal(width),
    } | ({"embed.token_type": normal(2, width)} if types else {})
    got, low = extension.embed(
        *(ids, positions, kinds, tensors["embed.word"], tensors["embed.position"], tensors.get("embed.token_type")),
        *(tensors["embed.norm.weight"], tensors["embed.norm.bias"]),
        eps=EPS,
        precision=precision,
    )
    batch = PackedBatch(ids, positions, np.array([0, 19], np.int32), kinds)
    truth = reference.embed(batch, {name: tensor.astype(np.float64) for name, tensor in tensors.items()}, EPS)
    assert naive.error(got, truth) <= naive.allowed(reference.embed(batch, tensors, EPS), truth)
    assert np.array_equal(from_raw(low, precision), rounded(got, precision))
