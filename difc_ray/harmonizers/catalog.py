"""What every registered rule says of itself, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from difc_ray.harmonizers import HARMONIZERS, Harmonizer
from difc_ray.harmonizers.base import Guarantee


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """One line of the table of rules."""

    name: str
    """Name in the registry."""
    summary: str
    """One line."""
    guarantee: Guarantee
    """Whether the direction opposes no row: proven, proven for two rows, or not promised. With default options."""
    cost: str
    """Order of the arithmetic for n rows."""
    rows: str
    """How many rows it takes: ``2``, ``n``, or ``2n`` (gradients, and what the curvature makes of them)."""
    needs: tuple[str, ...]
    """What it needs besides the Gram: ``losses``, ``curvature``."""
    options: Mapping[str, Any]
    """Options and their defaults."""
    source: str
    """Paper and equation."""


def rule_table() -> list[RuleRow]:
    """All registered rules, those with a promise first, then by name."""
    order: dict[Guarantee, int] = {"proven": 0, "n = 2 only": 1, "no": 2}
    rows = [_row(name, HARMONIZERS.get(name)) for name in HARMONIZERS]
    return sorted(rows, key=lambda row: (row.name.endswith("_paper"), order[row.guarantee], row.name))


def _row(name: str, rule: type[Harmonizer]) -> RuleRow:
    options = {
        option.name: option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        for option in dataclasses.fields(rule)
    }
    return RuleRow(
        name=name, summary=rule.summary, guarantee=rule.guarantee, cost=rule.cost, source=rule.source, options=options,
        rows="2" if rule.two_rows else "2n" if rule.needs_metric else "n",
        needs=("losses",) * rule.needs_losses + ("curvature",) * rule.needs_metric,
    )  # fmt: skip
