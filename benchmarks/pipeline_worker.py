"""One contestant of ``benchmarks.from_strings`` in its own process: a pipeline from strings to answers.

    python -m benchmarks.pipeline_worker LIBRARY PRECISION TASK CHECKPOINT THREADS SCRATCH

Reads a JSON object a line, ``{"inputs": […], "batch_size": n}``, and answers ``{"seconds": …, "forward": …}``, or
``{"error": …}``; ``forward`` are the seconds inside the model, null where they are not told apart. It needs the
contestant's own library only, so it can run in another Python than the rest of the kit.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
OPTIONS: dict[str, dict[str, Any]] = {"token-classification": {"aggregation_strategy": "first"}}
OUTPUTS = {"question-answering": ["start_logits", "end_logits"]}


def main() -> None:
    library, precision, task, checkpoint, threads, scratch = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print too
    pipe = LOADERS[library](precision, task, checkpoint, int(threads), Path(scratch))
    answers.write(json.dumps({"detail": pipe.detail}) + "\n")
    answers.flush()
    for line in sys.stdin:
        try:
            answer = pipe.timed(**json.loads(line))
        except Exception as error:  # whatever a library raises is its answer
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Timed:
    """A pipeline, and the seconds that its model takes; ``call`` runs it on inputs in batches."""

    def __init__(self, call: Any, detail: str, engine: Any = None) -> None:
        self.call, self.detail, self.forward = call, detail, None
        if engine is not None:
            self.forward = 0.0
            logits = engine.logits

            def timed_logits(*arguments: Any, **named: Any) -> Any:
                began = time.perf_counter()
                try:
                    return logits(*arguments, **named)
                finally:
                    self.forward += time.perf_counter() - began

            engine.logits = timed_logits

    def timed(self, inputs: list[Any], batch_size: int | None) -> dict[str, Any]:
        if self.forward is not None:
            self.forward = 0.0
        began = time.perf_counter()
        found = self.call(inputs, batch_size)
        seconds = time.perf_counter() - began
        assert len(found) == len(inputs)
        return {"seconds": seconds, "forward": self.forward}


def load_distilfast(precision: str, task: str, checkpoint: str, threads: int, scratch: Path) -> Timed:
    os.environ["DISTILFAST_CACHE"] = str(scratch / "packed")
    import distilfast

    pipe = distilfast.pipeline(task, checkpoint, precision=precision, threads=threads, **OPTIONS.get(task, {}))
    isa = pipe.engine.info()["isa"]
    return Timed(lambda inputs, batch: list(pipe(iter(inputs), batch_size=batch)), isa, pipe.engine)


def load_transformers(precision: str, task: str, checkpoint: str, threads: int, scratch: Path) -> Timed:
    import torch
    import transformers

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = getattr(transformers, AUTO[task]).from_pretrained(checkpoint, dtype=dtype).eval()
    return _in_transformers(model, task, checkpoint)


def load_onnxruntime(precision: str, task: str, checkpoint: str, threads: int, scratch: Path) -> Timed:
    """As optimum does it: a graph in the place of the model, inside transformers' pipeline."""
    import onnxruntime
    import torch
    import transformers

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = quantised(exported(task, checkpoint, scratch), checkpoint)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = getattr(transformers, AUTO[task]).from_pretrained(checkpoint).eval()
    names = OUTPUTS.get(task, ["logits"])

    def forward(input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        found = session.run(None, {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return transformers.utils.ModelOutput(zip(names, map(torch.from_numpy, found), strict=True))

    model.forward = forward
    return _in_transformers(model, task, checkpoint)


def _in_transformers(model: Any, task: str, checkpoint: str) -> Timed:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **OPTIONS.get(task, {}))
    truncated = {"truncation": True} if task == "text-classification" else {}

    def call(inputs: list[Any], batch_size: int | None) -> list[Any]:
        return list(pipe(inputs, batch_size=batch_size or 1, **truncated))

    return Timed(call, f"transformers {transformers.__version__}")


def exported(task: str, checkpoint: str, scratch: Path) -> Path:
    path = scratch / f"{task}.onnx"
    if not path.exists():
        import torch
        import transformers

        model = getattr(transformers, AUTO[task]).from_pretrained(checkpoint, attn_implementation="eager").eval()
        model.config.return_dict = False
        example, names = torch.ones(2, 16, dtype=torch.long), OUTPUTS.get(task, ["logits"])
        inputs = ["input_ids", "attention_mask"]
        axes = {name: {0: "batch", 1: "length"} for name in (*inputs, *names)}
        if task == "text-classification":
            axes["logits"] = {0: "batch"}
        torch.onnx.export(
            model,
            (example, example),
            str(path),
            input_names=inputs,
            output_names=names,
            dynamic_axes=axes,
            dynamo=False,
        )
    return path


def quantised(path: Path, checkpoint: str) -> Path:
    """Fused by ONNX Runtime's transformer optimiser, then dynamic int8 with a scale for each output channel."""
    quantised = path.with_suffix(".int8.onnx")
    if not quantised.exists():
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers import optimizer

        config = json.loads((Path(checkpoint) / "config.json").read_text())
        optimised = path.with_suffix(".fused.onnx")
        optimizer.optimize_model(str(path), "bert", config["n_heads"], config["dim"], opt_level=1).save_model_to_file(
            str(optimised)
        )
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(
            str(optimised), str(quantised), per_channel=True, weight_type=QuantType.QInt8, extra_options=options
        )
    return quantised


LOADERS = {"distilfast": load_distilfast, "transformers": load_transformers, "onnxruntime": load_onnxruntime}

if __name__ == "__main__":
    main()
