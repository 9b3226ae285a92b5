"""Prints the polynomial coefficients of math.h: python csrc/cpu/vec/fit.py (needs numpy and mpmath).

Each is a weighted least-squares fit on Chebyshev nodes, reweighted until the error is level (Lawson's method), in
long double, then rounded to float32. The figure beside each is the largest error of the rounded polynomial when it is
evaluated exactly.
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def relative(x, y):
    """Weight of an error: errors relative to the function's value count the same everywhere."""
    return 1 / np.abs(y)


def absolute(x, y):
    """Weight of an error: absolute errors count the same everywhere."""
    return np.ones_like(y)


def fit(function, low, high, degree, weight, centred=False):
    """Coefficients, lowest power first, of the polynomial closest to ``function`` on [low, high]: in x, or ``centred``
    in the x that is -1 at ``low`` and 1 at ``high``, where high powers do not cancel each other.
    """
    nodes = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    values = np.array([float(function(mp.mpf(x))) for x in nodes])
    scale = weight(nodes, values)
    basis = np.polynomial.chebyshev.chebvander((2 * nodes - low - high) / (high - low), degree)
    weights = np.ones_like(values)
    for _ in range(60):
        root = np.sqrt(weights) * scale
        solution = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)[0]
        error = np.abs(basis @ solution - values) * scale
        weights *= error
        weights /= weights.sum()
    domain = [-1, 1] if centred else [low, high]
    series = np.polynomial.Chebyshev(solution, domain=domain).convert(kind=np.polynomial.Polynomial)
    rounded = series.coef.astype(np.float32)
    at = (2 * nodes - low - high) / (high - low) if centred else nodes
    error = np.abs(np.polynomial.Polynomial(rounded.astype(np.float64))(at) - values) * scale
    return rounded, error.max()


def show(name, coefficients, error):
    """One C++ array."""
    print(f"// largest error {error:.1e}")
    print(f"constexpr float {name}[] = {{" + ", ".join(f"{c:.9g}f" for c in coefficients) + "};")


if __name__ == "__main__":
    half = float(mp.log(2) / 2)
    show("exp_poly", *fit(mp.exp, -half, half, 6, relative))
    show("exp2_poly", *fit(lambda x: mp.mpf(2) ** x, -0.5, 0.5, 6, relative))
    # 1 + x q(x), so that 2^0 is exact; a relative error of q becomes at most (2^-x - 1) of it in 2^x, 0.42 at x = -1/2.
    coefficients, error = fit(lambda x: (mp.mpf(2) ** x - 1) / x, -0.5, 0.5, 3, relative)
    show("coarse_exp2_poly", [1.0, *coefficients], 0.42 * error)
    show("erf_poly", *fit(lambda t: mp.erf(mp.sqrt(t)) / mp.sqrt(t), 1e-9, 0.85, 6, relative))
    show("log_erfc_poly", *fit(lambda z: mp.log(mp.erfc(z)), 0.9, 5.0, 10, absolute))
    # GELU(x) = max(x, 0) + |x| times this at |x|, whose error therefore counts |x| times.
    tail = fit(lambda x: -mp.erfc(x / mp.sqrt(2)) / 2, 0.0, 4.5, 10, lambda x, y: x, centred=True)
    show("gelu_tail_poly", *tail)
