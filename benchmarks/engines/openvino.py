"""OpenVINO with its precision said: on hosts that have bf16 units it would otherwise take them for an fp32 model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Forward, missing
from benchmarks.engines.onnx_graph import INPUTS, exported

PRECISIONS = ("fp32", "bf16", "int8")
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8: what NNCF left in floating point


def unavailable(precision: str) -> str | None:
    """Why it cannot run here, or None."""
    return missing("torch", "transformers", "onnx", "openvino", *(["nncf"] if precision == "int8" else []))


def load(directory: Path, precision: str, threads: int, scratch: Path) -> Forward:
    """See ``benchmarks.engines``."""
    import openvino

    core = openvino.Core()
    path = _quantised(core, directory, scratch) if precision == "int8" else exported(directory, scratch)
    hint = _HINTS[precision]
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(str(path), "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if chosen != hint:
        raise RuntimeError(f"OpenVINO runs in {chosen}, not in {hint}.")
    request = compiled.create_infer_request()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        request.infer(dict(zip(INPUTS, (ids, mask), strict=True)))
        return request.get_output_tensor().data.copy()

    return run


def _quantised(core: Any, directory: Path, scratch: Path) -> Path:
    """Post-training quantisation by NNCF, calibrated on ids of the vocabulary."""
    path = scratch / "nncf.xml"
    if not path.exists():
        import json

        import nncf
        import openvino

        size = json.loads((directory / "config.json").read_text())["vocab_size"]
        rng = np.random.default_rng(0)
        batches = [rng.integers(0, size, (1, 64)) for _ in range(32)]
        data = nncf.Dataset(batches, lambda ids: dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)))
        nncf.set_log_level(40)
        model = nncf.quantize(
            core.read_model(str(exported(directory, scratch))), data, model_type=nncf.ModelType.TRANSFORMER
        )
        openvino.save_model(model, str(path), compress_to_fp16=False)
    return path
