"""Layout, Gram matrix and combination of flat rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from difc_ray import vectors
from difc_ray.vectors import ParameterLayout, combine, gram, write_row, write_theta


def rows_of(n: int, size: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(n)]


def test_layout_round_trip() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    layout = ParameterLayout.of(model)
    theta_P = torch.arange(layout.size, dtype=torch.float32)
    write_theta(theta_P, model.parameters())
    assert torch.equal(layout.flatten(dict(model.named_parameters())), theta_P)
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), theta_P)
    assert [layout.owner(i) for i in (0, 11, 12, 16, layout.size - 1)] == [
        "0.weight", "0.weight", "0.bias", "1.weight", "1.bias",
    ]  # fmt: skip
    row_P = torch.empty(layout.size)
    write_row(list(model.parameters()), row_P)
    assert torch.equal(row_P, theta_P)


def test_layouts_that_differ_say_where() -> None:
    one = ParameterLayout(("a", "b"), ((2,), (3,)))
    assert one.mismatches(one) == []
    assert "`b` is (3,) here and (4,) there" in one.mismatches(ParameterLayout(("a", "b"), ((2,), (4,))))
    assert one.mismatches(ParameterLayout(("b", "a"), ((3,), (2,)))) == ["the parameters come in another order"]


@pytest.mark.parametrize("size", [1, 1000, vectors.BLOCK, vectors.BLOCK + 1, 3 * vectors.BLOCK - 7])
def test_gram_equals_float64_inner_products(size: int) -> None:
    rows = rows_of(5, size)
    expected = np.array([[float(np.dot(a.double().numpy(), b.double().numpy())) for b in rows] for a in rows])
    found = gram(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * size)
    assert np.array_equal(found, found.T)
    assert found.dtype == np.float64


def test_gram_does_not_overflow_and_shows_every_bad_entry() -> None:
    rows = rows_of(3, 100_000)
    rows[0] *= 1e30
    assert np.isfinite(gram(rows)).all()
    for value in (float("nan"), float("inf"), float("-inf")):
        spoilt = [row.clone() for row in rows]
        spoilt[1][77_777] = value
        assert np.isfinite(np.diag(gram(spoilt))).tolist() == [True, False, True]


def test_gram_and_combination_do_not_depend_on_where_rows_lie() -> None:
    size = 2 * vectors.BLOCK + 3
    rows = rows_of(4, size)
    shifted = [torch.cat([torch.zeros(k + 1), row])[k + 1 :] for k, row in enumerate(rows)]
    weights = np.array([0.3, -1.7, 2.0, 1e-3])
    assert np.array_equal(gram(rows), gram(shifted))
    assert torch.equal(combine(weights, rows), combine(weights, shifted))


def test_combination_is_a_sum_in_order() -> None:
    rows, weights = rows_of(3, 2 * vectors.BLOCK + 5), np.array([0.5, -2.0, 3.25])
    expected = rows[0] * np.float32(0.5)
    expected = expected + rows[1] * np.float32(-2.0)
    expected = expected + rows[2] * np.float32(3.25)
    torch.testing.assert_close(combine(weights, rows), expected, rtol=1e-6, atol=1e-6)
