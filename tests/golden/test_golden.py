"""Our outputs against stored ones of transformers in float64, without transformers."""

from __future__ import annotations

import numpy as np
import pytest

from distilfast import Engine
from distilfast.backends import cpu
from tests.golden.make import CASES, OUTPUTS, checkpoint, inputs


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(OUTPUTS))


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_every_head_and_isa(golden, tmp_path, monkeypatch, model_type, task):
    directory = checkpoint(tmp_path, model_type, task)
    wanted = {name.split("/")[2]: value for name, value in golden.items() if name.startswith(f"{model_type}/{task}/")}
    assert wanted
    engines = [Engine.from_pretrained(directory, backend="reference", precision="fp64")]
    for isa in (name for name, there in cpu.isas().items() if there):
        monkeypatch.setenv("DISTILFAST_ISA", isa)
        engines.append(Engine.from_pretrained(directory))
    for engine in engines:
        got = engine(*inputs(task)).to_dict()
        assert set(got) == set(wanted)
        # 64 roundings of float32: these models are two layers deep and sum at most 40 products.
        tolerance = 1e-12 if engine.precision == "fp64" else 64 * 2.0**-24
        for name, value in wanted.items():
            assert np.abs(got[name] - value).max() <= tolerance * np.abs(value).max()
