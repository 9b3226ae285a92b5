"""Serving: requests with deadlines, answered in batches that are formed as they arrive."""

from distilfast.serving.batcher import Batcher, Timing
from distilfast.serving.cost import Curve

__all__ = ["Batcher", "Curve", "Timing"]
