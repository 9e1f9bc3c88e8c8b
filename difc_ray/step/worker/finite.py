"""What is wrong with rows that are not finite, in words."""

from __future__ import annotations

import numpy as np

from difc_ray.step.worker.messages import Rows, held_rows
from difc_ray.vectors import ParameterLayout


def bad_rows(reply: Rows, layout: ParameterLayout) -> str:
    """Names domain, row and parameter of the first non-finite entry of an answer; empty: there is none."""
    rows_RP = held_rows(reply)
    kinds = ("gradient",) if len(rows_RP) == 1 else ("classification gradient", "alignment gradient")
    for kind, row_P in zip(kinds, rows_RP, strict=True):
        bad = ~np.isfinite(row_P)
        if bad.any():
            return (
                f"domain `{reply.token.domain}`: the {kind} has {int(bad.sum())} non-finite value(s), first "
                f"in `{layout.owner(int(bad.argmax()))}`"
            )
    if reply.curvature_P is not None and (bad := ~np.isfinite(reply.curvature_P)).any():
        where = layout.owner(int(bad.argmax()))
        return f"domain `{reply.token.domain}`: the curvature is not finite, first in `{where}`"
    return ""
