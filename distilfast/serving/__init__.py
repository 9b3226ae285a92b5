"""Serving: requests with deadlines, answered in batches that are formed as they arrive."""

from distilfast.serving.batcher import Batcher
from distilfast.serving.cost import Curve
from distilfast.serving.work import Timing

__all__ = ["Batcher", "Curve", "Timing"]
