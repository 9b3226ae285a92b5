"""How good are the answers? Labelled data in, the task's official metrics out.

result = evaluate("path/or/hub-id", "mnli", "path/of/glue", precision="fp32")
result.metrics  # {"accuracy_matched": 84.0, "accuracy_mismatched": 84.4}, in percent
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilfast.evaluation.result import Result
    from distilfast.evaluation.tasks import DATASETS, evaluate

__all__ = ["DATASETS", "Result", "evaluate"]


def __getattr__(name: str) -> Any:
    # On first use: the command line imports this package to know its options, and must not pay for numpy.
    if name not in __all__:
        raise AttributeError(f"module 'distilfast.evaluation' has no attribute {name!r}")
    from distilfast.evaluation import result, tasks

    return getattr(result if name == "Result" else tasks, name)
