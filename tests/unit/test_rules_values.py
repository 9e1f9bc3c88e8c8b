"""Rules against printed values, vectors, TorchJD, and one another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torchjd import aggregation
from torchjd.linalg import DualConeProjector

from difc_ray.errors import ConfigError
from difc_ray.harmonizers import harmonize
from tests.samplers import Rows, gaussian_rows, generator, gram_of

PAIR = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
THREE = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0], [-0.6, -0.7, math.sqrt(0.15)]])


class Ordered(np.random.Generator):
    """A generator whose permutations are given."""

    def __init__(self, orders: list[list[int]]) -> None:
        super().__init__(np.random.PCG64(0))
        self.orders = iter(orders)

    def permutation(self, *_: Any, **__: Any) -> Any:
        return np.array(next(self.orders))


@pytest.mark.parametrize(
    ("rule", "base", "direction"),
    [
        ("upgrad", None, (0.2929, 1.9004, 1.9004)),
        ("dualproj", None, (0.5563, 1.1109, 1.1109)),
        ("aligned", None, (0.2133, 0.9673, 0.9673)),
        ("imtl_g", None, (0.0767, 1.0, 1.0)),
        ("config_gram", [1.0, 1.0], (0.1588, 2.0706, 2.0706)),
        ("mgda", None, (0.0, 1.0, 1.0)),
    ],
)
def test_directions_printed_by_torchjd(rule: str, base: Any, direction: tuple[float, ...]) -> None:
    """Its printed values for the QPs carry a regulariser of 1e-4."""
    found = harmonize(gram_of(PAIR), rule, weights=base).weights @ PAIR
    assert found == pytest.approx(direction, abs=1e-3 if rule in ("upgrad", "dualproj") else 6e-5)


@pytest.mark.parametrize(
    ("rule", "tau", "margins"),
    [
        ("gh_symmetric", (2.2, 1.8, 1.8), (0.04, 0.12, 0.12)),
        ("upgrad", (3.25, 2.625, 2.625), (0.1, 0.15, 0.15)),
        ("dualproj", (1.2, 1.0, 1.0), (0.0, 0.08, 0.08)),
    ],
)
def test_three_rows(rule: str, tau: tuple[float, ...], margins: tuple[float, ...]) -> None:
    found = harmonize(gram_of(THREE), rule, weights=np.ones(3)).weights
    assert found == pytest.approx(tau, abs=1e-6)
    assert THREE @ (found @ THREE) == pytest.approx(margins, abs=1e-6)


@pytest.mark.parametrize(
    ("orders", "margins"),
    [
        ([[0, 1, 2]] * 3, (-0.464, 0.384, 0.528)),  # worse than the plain sum (-.2, .2, .2)
        ([[2, 1, 0]] * 3, (0.208, 0.096, -0.048)),
    ],
)
def test_pcgrad_by_order(orders: list[list[int]], margins: tuple[float, ...]) -> None:
    found = harmonize(gram_of(THREE), "pcgrad", weights=np.ones(3), rng=Ordered(orders)).weights
    assert THREE @ (found @ THREE) == pytest.approx(margins, abs=1e-6)


def pcgrad_on_vectors(rows: Rows, orders: list[list[int]]) -> Rows:
    """Algorithm 1 as printed, on vectors."""
    total = np.zeros(rows.shape[1])
    for own, order in zip(rows, orders, strict=True):
        changed = own.copy()
        for j in order:
            if rows[j] is not own and changed @ rows[j] < 0 and not np.array_equal(rows[j], own):
                changed -= (changed @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        total += changed
    return total


def test_pcgrad_on_vectors_and_as_torchjd() -> None:
    rng = generator(1)
    for n in (2, 3, 6):
        rows = gaussian_rows(rng, n, 5, 1.0) - 0.3
        torch.manual_seed(n)
        orders = [torch.randperm(n).tolist() for _ in range(n)]
        found = harmonize(gram_of(rows), "pcgrad", weights=np.ones(n), rng=Ordered(orders)).weights
        np.testing.assert_allclose(found @ rows, pcgrad_on_vectors(rows, orders), atol=1e-12)
        torch.manual_seed(n)
        theirs = aggregation.PCGradWeighting()(torch.from_numpy(gram_of(rows))).numpy()
        np.testing.assert_allclose(found, theirs, rtol=1e-10)
    with pytest.raises(ConfigError, match=r"must be given `rng`.*gh_symmetric"):
        harmonize(np.eye(3), "pcgrad")
    assert harmonize(np.eye(2), "pcgrad").weights.tolist() == [0.5, 0.5]


def test_ghpp_k_is_the_half_rotation_for_two_rows() -> None:
    rng = generator(2)
    for _ in range(20):
        rows = gaussian_rows(rng, 2, 4, 1.0)
        two, many = (harmonize(gram_of(rows), rule, weights=np.ones(2)) for rule in ("ghpp_rotation", "ghpp_k"))
        assert two.diagnostics["s_min_active"] == many.diagnostics["s_min_active"]
        np.testing.assert_allclose(many.weights, two.weights, rtol=1e-9)


@pytest.mark.parametrize("n", [3, 4, 6])
def test_ghpp_k_takes_the_conflicts_away_and_moves_least(n: int) -> None:
    """The new unit rows have the target cosines, and no other rows with these are nearer to the old ones."""
    from difc_ray.harmonizers.pairwise import nearest_mixing

    rng = generator(n)
    rows = rng.standard_normal((n, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    target = np.maximum(gram_of(rows), 0.0)
    mixing = nearest_mixing(gram_of(rows))
    assert mixing is not None
    moved = mixing @ rows
    if np.linalg.eigvalsh(target)[0] > 0:
        np.testing.assert_allclose(gram_of(moved), target, atol=1e-9)
    for _ in range(20):
        turn, _ = np.linalg.qr(np.eye(8) + 0.1 * rng.standard_normal((8, 8)))
        assert np.sum((moved - rows) ** 2) <= np.sum((moved @ turn - rows) ** 2) + 1e-9


def test_opposed_rows_fall_back_to_gh_symmetric() -> None:
    rows = np.array([[1.0, 0.0], [-2.0, 1e-3], [0.0, 1.0]])
    found = harmonize(gram_of(rows), "ghpp_k")
    assert found.diagnostics["s_min_active"] == 1.0
    np.testing.assert_array_equal(found.weights, harmonize(gram_of(rows), "gh_symmetric").weights)


class ByNnls(DualConeProjector):
    """TorchJD's projection by scipy, without its safeguards."""

    def __call__(self, U: Any, G: Any) -> Any:
        values, vectors = np.linalg.eigh(G.numpy())
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        found = [u + nnls(root, -root @ u)[0] for u in np.atleast_2d(U.numpy())]
        return torch.from_numpy(np.stack(found).reshape(tuple(U.shape)))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_as_torchjd_where_it_is_right(n: int) -> None:
    rng = generator(n)
    for _ in range(10):
        rows = gaussian_rows(rng, n, n + 2, 0.5) - 0.3 * rng.standard_normal(n + 2)
        gram, base = gram_of(rows), rng.uniform(0.2, 1.0, n)
        given, preference = torch.from_numpy(gram), torch.from_numpy(base)
        for rule, weighting in (("dualproj", "DualProj"), ("upgrad", "UPGrad")):
            cls = getattr(aggregation, weighting + "Weighting")
            theirs = cls(pref_vector=preference, projector=ByNnls())(given).numpy()
            np.testing.assert_allclose(harmonize(gram, rule, weights=base).weights, theirs, rtol=1e-6, atol=1e-9)
        for mode in ("min", "median") if n % 2 else ("min",):  # torch takes the lower of two middle values
            theirs = aggregation.AlignedMTLWeighting(scale_mode=mode)(given).numpy()
            np.testing.assert_allclose(harmonize(gram, "aligned", scale_mode=mode).weights, theirs, rtol=1e-7)
        theirs = aggregation.AlignedMTLWeighting(scale_mode="rmse")(given).numpy()
        np.testing.assert_allclose(harmonize(gram, "aligned", scale_mode="mean").weights, theirs, rtol=1e-7)
        loose = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=20_000)(given).numpy() if n == 2 else None
        if loose is not None:
            np.testing.assert_allclose(harmonize(gram, "mgda").weights, loose, atol=1e-6)
        config = aggregation.ConFIG()(torch.from_numpy(rows)).numpy()
        mine = harmonize(gram, "config_gram", weights=np.ones(n)).weights @ rows
        np.testing.assert_allclose(mine, config, rtol=1e-6, atol=1e-9)
        impartial = aggregation.IMTLGWeighting()(given).numpy()
        found = harmonize(gram, "imtl_g").weights
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        upright = np.sign((unit @ (impartial @ rows))[0])  # theirs may oppose every row
        np.testing.assert_allclose(found, upright * impartial, rtol=1e-6)
        np.testing.assert_allclose(unit @ (found @ rows), (unit @ (found @ rows))[0], rtol=1e-6)
        assert (unit @ (found @ rows))[0] > 0


def test_published_imtl_g_can_oppose_every_row() -> None:
    """Why it is divided by |Σ v|: the published weights of these three rows have sum 1, and oppose all three."""
    rng = generator(12)
    for _ in range(2000):
        rows = gaussian_rows(rng, 3, 3, 1.5)
        published = np.linalg.solve(gram_of(rows), np.linalg.norm(rows, axis=1))
        if published.sum() < 0:
            break
    else:
        pytest.fail("no such rows among the draws")
    published /= published.sum()
    assert (rows @ (published @ rows) < 0).all()
    assert (rows @ (harmonize(gram_of(rows), "imtl_g").weights @ rows) > 0).all()
