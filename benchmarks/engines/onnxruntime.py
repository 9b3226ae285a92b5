"""ONNX Runtime with its transformer optimiser: fused attention, GELU and skip-LayerNorm, fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.engines import missing

PRECISION = "fp32"


def unavailable() -> str | None:
    """Why it cannot run here, or None."""
    return missing("torch", "transformers", "onnx", "onnxruntime")


def load(directory: Path, threads: int, scratch: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """See ``benchmarks.engines``; the graph is exported and optimised into ``scratch``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = _optimised(directory, scratch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def _optimised(directory: Path, scratch: Path) -> str:
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    model.config.return_dict = False
    example = torch.ones(2, 16, dtype=torch.long)
    names, axes = ["input_ids", "attention_mask"], {0: "batch", 1: "length"}
    exported, path = str(scratch / "exported.onnx"), str(scratch / "optimised.onnx")
    torch.onnx.export(
        model,
        (example, example),
        exported,
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes),
        dynamo=False,
    )
    config = model.config
    heads = getattr(config, "n_heads", None) or config.num_attention_heads
    optimizer.optimize_model(exported, "bert", heads, config.hidden_size, opt_level=1).save_model_to_file(path)
    return path
