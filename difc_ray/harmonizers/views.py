"""What a rule sees: the two tasks, one row per domain, or both, as combinations of the raw rows.

Shape suffixes: K domains, N raw rows (2K where the penalty's are apart, else K), V rows of the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RowView:
    """The rows that a rule sees, as combinations of the raw rows.

    Args:
        matrix_VN: view rows = matrix · raw rows; raw rows are g_1 … g_K, then a_1 … a_K, but those of the view
            for `domains`.
        base_V: the weights of the view's rows where nothing conflicts.
        names: what each view row is.
    """

    matrix_VN: np.ndarray
    base_V: np.ndarray
    names: tuple[str, ...]


def make_view(between: str, weights_K: np.ndarray, domains: Sequence[str]) -> RowView:
    """The view `tasks`, `domains` or `both` of K classification rows g_e and alignment rows a_e (Σ a_e = ∇Ω).

    Args:
        between: `tasks`: row 1 = Σ a_e, row 2 = Σ w_e g_e, base (1, 1); `domains`: row_e = g_e + a_e / w_e, as workers
            make it (g_e without a penalty), base w; `both`: K rows g_e and one row Σ a_e, base (w, 1).
        weights_K: the domains' weights, sum 1.
        domains: the domains' names.
    """
    k = len(weights_K)
    eye, ones, none = np.eye(k), np.ones((1, k)), np.zeros((1, k))
    if between == "tasks":
        matrix = np.vstack([np.hstack([none, ones]), np.hstack([weights_K[None], none])])
        return RowView(matrix_VN=matrix, base_V=np.ones(2), names=("alignment", "classification"))
    if between == "domains":
        return RowView(matrix_VN=eye, base_V=weights_K, names=tuple(domains))
    matrix = np.vstack([np.hstack([eye, 0 * eye]), np.hstack([none, ones])])
    return RowView(matrix_VN=matrix, base_V=np.append(weights_K, 1.0), names=(*domains, "alignment"))
