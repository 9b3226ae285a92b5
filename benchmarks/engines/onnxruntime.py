"""ONNX Runtime behind its transformer optimiser, which fuses attention, GELU and skip-LayerNorm.

int8 is dynamic, with a scale for each output channel.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engines import Forward, missing
from benchmarks.engines.onnx_graph import INPUTS, exported

PRECISIONS = ("fp32", "int8")


def unavailable(precision: str) -> str | None:
    """Why it cannot run here, or None."""
    return missing("torch", "transformers", "onnx", "onnxruntime")


def load(directory: Path, precision: str, threads: int, scratch: Path) -> Forward:
    """See ``benchmarks.engines``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = _optimised(directory, scratch)
    if precision == "int8":
        path = _quantised(path, scratch)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]


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

        # Behind the fused operators shape inference ends; the type of what they give has to be said.
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(
            str(path), str(quantised), per_channel=True, weight_type=QuantType.QInt8, extra_options=options
        )
    return quantised
