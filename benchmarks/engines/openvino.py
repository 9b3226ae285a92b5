"""OpenVINO with an explicit precision: on hosts with bf16 units it would otherwise use them for an fp32 model.

The precision is read back: the linears of its runtime model report theirs, and the processor's flags
which units there are for it. Without such units bf16 would be fp32 under another name, or emulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Contestant, Loaded, missing, only_on_cpu
from benchmarks.engines.onnx_graph import INPUTS, exported
from benchmarks.rows import processor_flags

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8: what NNCF left in floating point
ENTRIES = tuple(("", precision) for precision in _HINTS)
_BF16_UNITS = ("amx_bf16", "avx512_bf16")


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    if contestant.precision == "bf16" and not _bf16_unit():
        return f"This processor has no units for bf16 ({' or '.join(_BF16_UNITS)})."
    nncf = ["nncf"] if contestant.precision == "int8" else []
    return only_on_cpu(contestant) or missing("torch", "transformers", "onnx", "openvino", *nncf)


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    import openvino

    core, precision = openvino.Core(), contestant.precision
    path = _quantised(core, directory, scratch) if precision == "int8" else exported(directory, scratch)
    hint = _HINTS[precision]
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(str(path), "CPU", settings)
    linears = _precisions_of_linears(compiled)
    if precision != "int8" and linears != {hint}:
        raise RuntimeError(f"OpenVINO runs its linears in {', '.join(sorted(linears))}, not in {hint}.")
    request = compiled.create_infer_request()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        request.infer(dict(zip(INPUTS, (ids, mask), strict=True)))
        return request.get_output_tensor().data.copy()

    unit = f" by {_bf16_unit()}" if precision == "bf16" else ""
    return Loaded(run, f"linears in {', '.join(sorted(linears))}{unit}, {threads} threads")


def _bf16_unit() -> str | None:
    """The processor's units for bf16, the faster first."""
    flags = processor_flags()
    return next((unit for unit in _BF16_UNITS if unit in flags), None)


def _precisions_of_linears(compiled: Any) -> set[str]:
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    return {str(each["runtimePrecision"].value) for each in facts if each["layerType"].value == "FullyConnected"}


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
