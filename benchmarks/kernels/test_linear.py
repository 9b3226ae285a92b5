"""linear in the sizes of DistilBERT base: [N, K]."""

import pytest
from conftest import THREADS

from distilfast import _cpu


@pytest.mark.parametrize(
    ("n", "k", "activation"), [(2304, 768, "none"), (768, 768, "none"), (3072, 768, "gelu"), (768, 3072, "none")]
)
def test_linear(timed, isa, precision, tokens, normal, n, k, activation):
    linear = _cpu.Linear(normal(n, k), normal(n), isa=isa, precision=precision, threads=THREADS)
    x = normal(tokens, k)
    timed(lambda: linear(x, activation), 2 * tokens * n * k, precision)
