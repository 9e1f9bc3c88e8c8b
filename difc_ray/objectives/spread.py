"""The alignment penalty: spread of per-domain statistics around their mean, and its cotangents.

Shape suffixes: K domains, S entries of the scope.

For statistics s_e with weights w_e (sum 1) the spread is ``sum_e w_e ‖s_e − s̄‖²`` with ``s̄ = sum_e w_e s_e``. Its
derivative with respect to s_e is ``2 w_e (s_e − s̄)``, although s̄ depends on s_e too: the deviations sum to zero,
which cancels the path through the mean. So worker e pulls ``⟨2 w_e (s_e − s̄), s_e(θ)⟩`` back with the bracket
constant, and the sum over workers is the gradient of the joint penalty, exactly.

Everything here is NumPy in float64 with sums in the order of the domains; results return to the statistics' own type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def weighted_mean(
    weights_K: Float[np.ndarray, " K"], values: Sequence[Float[np.ndarray, "*M S"]]
) -> Float[np.ndarray, "*M S"]:
    """``sum_e weights[e] * values[e]`` of vectors (or of batches of them) in float64, added in order."""
    total: np.ndarray = weights_K[0] * values[0].astype(np.float64)
    for weight, value in zip(weights_K[1:], values[1:], strict=True):
        total += weight * value.astype(np.float64)
    return total


def deviations(
    values: Sequence[Float[np.ndarray, " S"]], mean_S: Float[np.ndarray, " S"]
) -> list[Float[np.ndarray, " S"]]:
    """``values[e] − mean`` in float64."""
    return [value.astype(np.float64) - mean_S for value in values]


def spread(weights_K: Float[np.ndarray, " K"], deviations_K: Sequence[Float[np.ndarray, " S"]]) -> float:
    """``sum_e weights[e] ‖deviations[e]‖²``."""
    return float(sum(w * float(np.dot(d, d)) for w, d in zip(weights_K, deviations_K, strict=True)))


def cotangents(
    coefficient: float, weights_K: Float[np.ndarray, " K"], deviations_K: Sequence[Float[np.ndarray, " S"]]
) -> list[Float[np.ndarray, " S"]]:
    """``2 · coefficient · weights[e] · deviations[e]``: what each worker contracts its statistic with."""
    return [2.0 * coefficient * w * d for w, d in zip(weights_K, deviations_K, strict=True)]
