"""ONNX Runtime with its transformer optimiser, which fuses attention, GELU and skip-LayerNorm.

int8 is dynamic, with a scale for each output channel.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.engines import Contestant, Loaded, missing, only_on_cpu
from benchmarks.engines.onnx_graph import INPUTS, exported

ENTRIES = (("", "fp32"), ("", "int8"))


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    return only_on_cpu(contestant) or missing("torch", "transformers", "onnx", "onnxruntime")


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = _optimised(directory, scratch)
    if contestant.precision == "int8":
        path = _quantised(path, scratch)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]

    return Loaded(run, f"transformer optimiser, {threads} threads")


def _optimised(directory: Path, scratch: Path) -> Path:
    path = scratch / "optimised.onnx"
    if not path.exists():
        from onnxruntime.transformers import optimizer

        config = json.loads((directory / "config.json").read_text())
        heads, width = (
            config.get(a) or config[b] for a, b in (("n_heads", "num_attention_heads"), ("dim", "hidden_size"))
        )
        graph = optimizer.optimize_model(str(exported(directory, scratch)), "bert", heads, width, opt_level=1)
        graph.save_model_to_file(str(path))
    return path


def _quantised(path: Path, scratch: Path) -> Path:
    quantised = scratch / "int8.onnx"
    if not quantised.exists():
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # Shape inference ends at the fused operators; the types of their outputs have to be declared.
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(
            str(path), str(quantised), per_channel=True, weight_type=QuantType.QInt8, extra_options=options
        )
    return quantised
