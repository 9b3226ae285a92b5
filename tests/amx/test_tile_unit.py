"""The simulated tile unit against the pseudo-code of Intel's manual, written out in numpy, and its faults."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from host_build import imported

from distilfast.parity.budgets import to_bf16


@pytest.fixture(scope="module")
def unit(amx_build: Path) -> ModuleType:
    return imported("_tile_unit", amx_build)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2026)


def bf16_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """bf16 values as float32, within 2^±4, so that products of them and sums of 32 products are exact in float64."""
    return to_bf16(rng.choice([-1.0, 1.0], shape) * 2 ** rng.uniform(-4, 4, shape))


def stored_bf16(x: np.ndarray) -> np.ndarray:
    """x in bf16, as the bytes of a tile's rows."""
    return np.ascontiguousarray((np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)).view(
        np.uint8
    )


def bf16_k_packs(b: np.ndarray) -> np.ndarray:
    """B, [K, N] in bf16, as a tile's rows: the two values of a k-pack side by side, for each column."""
    k, n = b.shape
    return np.ascontiguousarray(b.reshape(k // 2, 2, n).transpose(0, 2, 1)).reshape(k // 2, 2 * n)


def int8_k_packs(b: np.ndarray) -> np.ndarray:
    """B, [K, N] in int8, as a tile's rows: the four values of a k-pack side by side, for each column."""
    k, n = b.shape
    return np.ascontiguousarray(b.reshape(k // 4, 4, n).transpose(0, 2, 1)).reshape(k // 4, 4 * n)


def bf16_product(unit: ModuleType, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return unit.bf16_product(c.view(np.uint8), stored_bf16(a), stored_bf16(bf16_k_packs(b))).view(np.float32)


def by_the_manual(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two chains, over even and odd k, from zero, one rounding for each step; their sum is added to c."""
    chains = np.zeros((2, *c.shape), np.float32)
    for k in range(a.shape[1]):
        exact = chains[k % 2].astype(np.float64) + np.outer(a[:, k].astype(np.float64), b[k].astype(np.float64))
        chains[k % 2] = exact.astype(np.float32)
    return c + (chains[0] + chains[1])


@pytest.mark.parametrize(("m", "k", "n"), [(16, 32, 16), (1, 2, 1), (3, 10, 5), (16, 30, 7), (5, 32, 16)])
def test_bf16_products_are_added_in_the_manuals_order(unit, rng, m, k, n):
    c = rng.standard_normal((m, n)).astype(np.float32)
    a, b = bf16_numbers(rng, m, k), bf16_numbers(rng, k, n)
    assert np.array_equal(bf16_product(unit, c, a, b), by_the_manual(c, a, b))


def test_another_order_of_summation_gives_other_bits(unit, rng):
    c = rng.standard_normal((16, 16)).astype(np.float32)
    a, b = bf16_numbers(rng, 16, 32), bf16_numbers(rng, 32, 16)
    got = bf16_product(unit, c, a, b)
    one_chain = c.copy()
    for k in range(32):
        one_chain = (one_chain + np.outer(a[:, k].astype(np.float64), b[k])).astype(np.float32)
    swapped = by_the_manual(c, a[:, ::-1], b[::-1])
    assert not np.array_equal(got, one_chain)
    assert not np.array_equal(got, swapped)


def test_denormals_are_zero_and_become_zero(unit):
    tiny, denormal = np.float32(2.0**-126), np.float32(2.0**-127)

    def product(c: float, a: float, b: float) -> np.float32:
        return bf16_product(unit, np.float32([[c]]), np.float32([[a, 0]]), np.float32([[b], [0]]))[0, 0]

    assert product(0, tiny, 1) == tiny
    assert product(0, denormal, 2) == 0, "a denormal operand is zero, though its product would be normal"
    assert product(0, 2, denormal) == 0
    assert product(0, tiny, 0.5) == 0, "a denormal result is zero"
    assert product(denormal, 1, 1) == 1
    assert product(denormal, 0, 1) == 0, "denormal accumulators are zero"
    assert np.isnan(product(np.nan, 1, 1))
    assert np.isnan(product(0, np.inf, 0))
    assert product(0, np.inf, -1) == -np.inf


def test_ties_go_to_even(unit):
    a, b = np.float32([[1, 1]]), np.float32([[1], [0]])
    for c, wanted in ((2**24, 2**24), (2**24 + 2, 2**24 + 4), (-(2**24) - 4, -(2**24) - 3)):
        assert bf16_product(unit, np.float32([[c]]), a, b)[0, 0] == wanted


@pytest.mark.parametrize(("m", "k", "n"), [(16, 64, 16), (1, 4, 1), (3, 20, 5), (16, 60, 7)])
def test_int8_products_are_exact_and_wrap(unit, rng, m, k, n):
    c = rng.integers(-(2**31), 2**31, (m, n)).astype(np.int32)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (k, n)))
    a[0], b[:, 0] = 127, -128
    c[0, 0] = -(2**31)  # beyond the end of int32
    got = unit.int8_product(c.view(np.uint8), a.view(np.uint8), int8_k_packs(b).view(np.uint8)).view(np.int32)
    assert np.array_equal(got, (c.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32))


def configuration(rows: dict[int, int], row_bytes: dict[int, int], palette: int = 1, reserved: int = 0) -> np.ndarray:
    """The 64 bytes that ldtilecfg reads."""
    config = np.zeros(64, np.uint8)
    config[0], config[2] = palette, reserved
    for tile, count in row_bytes.items():
        config[16:48].view(np.uint16)[tile] = count
    for tile, count in rows.items():
        config[48 + tile] = count
    return config


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (configuration({}, {}, palette=2), "#GP: there is no such palette."),
        (configuration({}, {}, reserved=1), "#GP: a reserved byte is not zero."),
        (configuration({0: 17}, {0: 64}), "#GP: a tile is larger than the palette allows."),
        (configuration({0: 16}, {0: 68}), "#GP: a tile is larger than the palette allows."),
        (configuration({0: 16}, {}), "#GP: a tile has rows and no columns, or columns and no rows."),
        (configuration({8: 16}, {8: 64}), "#GP: there are eight tiles."),
    ],
)
def test_a_wrong_configuration_is_a_fault(unit, config, sentence):
    with pytest.raises(RuntimeError) as caught:
        unit.configure(config)
    assert str(caught.value) == sentence


def test_tiles_that_are_not_configured_are_a_fault(unit):
    unit.release()
    with pytest.raises(RuntimeError, match="#UD: the tiles are not configured"):
        unit.zero_first_and_last()
    unit.configure(configuration({0: 16}, {0: 64}))
    with pytest.raises(RuntimeError, match="#UD: this tile is not configured"):
        unit.zero_first_and_last()
    unit.configure(configuration({0: 16, 7: 1}, {0: 64, 7: 4}))
    unit.zero_first_and_last()
    unit.configure(np.zeros(64, np.uint8))  # palette 0
    with pytest.raises(RuntimeError, match="#UD: the tiles are not configured"):
        unit.zero_first_and_last()


def test_a_tile_that_was_never_written_is_a_fault(unit):
    all_tiles = configuration(dict.fromkeys(range(8), 16), dict.fromkeys(range(8), 64))
    unit.configure(all_tiles)
    with pytest.raises(RuntimeError, match="never written"):
        unit.multiply_unwritten()


@pytest.mark.parametrize(
    ("c", "a", "b", "sentence"),
    [
        ((16, 64), (16, 64), (15, 64), "#UD: A and B do not have the same K."),
        ((16, 64), (16, 60), (16, 64), "#UD: A and B do not have the same K."),
        ((15, 64), (16, 64), (16, 64), "#UD: the accumulators do not have the rows of A."),
        ((16, 64), (16, 64), (16, 60), "#UD: the accumulators do not have the columns of B."),
        ((16, 64), (16, 62), (16, 64), "#UD: a row does not end at a whole k-pack."),
    ],
)
def test_shapes_that_do_not_match_are_a_fault(unit, c, a, b, sentence):
    for product in (unit.bf16_product, unit.int8_product):
        with pytest.raises(RuntimeError) as caught:
            product(*(np.zeros(shape, np.uint8) for shape in (c, a, b)))
        assert str(caught.value) == sentence
