"""The checkpoint as an ONNX graph, for the contestants that start from one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import Contestant
from benchmarks.engines.transformers import load_model

INPUTS, OUTPUT = ["input_ids", "attention_mask"], "last_hidden_state"


def exported(directory: Path, scratch: Path) -> Path:
    """Written once into ``scratch``."""
    path = scratch / "exported.onnx"
    if path.exists():
        return path
    import torch

    eager = Contestant("transformers", "fp32", "eager")  # what the graph optimisers know how to fuse
    model = load_model(eager, directory, torch.get_num_threads())
    model.config.return_dict = False
    example = torch.ones(2, 16, dtype=torch.long)
    part = path.with_suffix(".part")
    torch.onnx.export(
        model,
        (example, example),
        str(part),
        input_names=INPUTS,
        output_names=[OUTPUT],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in [*INPUTS, OUTPUT]},
        dynamo=False,
    )
    part.rename(path)
    return path
