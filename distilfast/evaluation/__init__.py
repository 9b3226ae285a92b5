"""How good are the answers? Labelled data in, the task's official metrics out.

result = evaluate("path/or/hub-id", "mnli", "path/of/glue", precision="fp32")
result.metrics  # {"accuracy_matched": 84.0, "accuracy_mismatched": 84.4}, in percent

``gate`` compares the metric of a precision with that of another one, or of the reference, on the caller's own texts.
"""

from __future__ import annotations

from distilfast.evaluation.quality import Quality, gate
from distilfast.evaluation.result import Result
from distilfast.evaluation.tasks import DATASETS, evaluate

__all__ = ["DATASETS", "Quality", "Result", "evaluate", "gate"]
