"""What ``difc-ray rules`` prints: all rules, one rule, or what they did on random gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from rich.markup import escape

from difc_ray.cli.console import console, make_table, print_facts, print_table
from difc_ray.errors import ConfigError
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.harmonizers.catalog import RuleRow, rule_table
from difc_ray.harmonizers.rule_check import CheckRow
from difc_ray.registry import did_you_mean

ROWS = {"2": "exactly two", "n": "any number", "2n": "any number, each with what the curvature makes of it"}
"""How a rule says how many rows it takes, in words."""


def print_rules(rows: Sequence[RuleRow]) -> None:
    """One line per rule; sources and options are left to :func:`print_rule`."""
    table = make_table("rule", "what it does", "no conflict", "cost", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, (row.name, row.summary, row.guarantee, row.cost)))
    print_table(table)
    print_facts({"one rule": "difc-ray rules NAME: its options, its source, and all that is known about it"})


def print_rule(name: str) -> None:
    """All that a rule says of itself.

    Args:
        name: of a registered rule.

    Raises:
        ConfigError: there is no such rule.
    """
    from difc_ray.config.overrides import as_argument  # which torch comes with; the table of all rules needs none

    rows = {row.name: row for row in rule_table()}
    row = rows.get(HARMONIZERS.canonical(name))
    if row is None:
        raise ConfigError(f"a rule must be known, got `{name}` (command line). {did_you_mean(name, rows)}")
    keys = {option: "harmonize.lam" if option == "lam" else f"harmonize.options.{option}" for option in row.options}
    options = [f"{keys[option]}={as_argument(keys[option], value)}" for option, value in row.options.items()]
    print_facts(
        {
            "rule": row.name,
            "what it does": row.summary,
            "no conflict": row.guarantee,
            "rows": ROWS[row.rows],
            "needs": ", ".join(row.needs),
            "cost": row.cost,
            "source": row.source,
            "options": options or "none",
        }
    )
    console.print()
    console.print(escape(inspect.getdoc(HARMONIZERS.get(name)) or ""), soft_wrap=True)


def print_rule_check(rows: Sequence[CheckRow]) -> None:
    """What the rules did on random Gram matrices."""
    right = ("draws", "conflicts", "worst cosine", "worst KKT", "median µs")
    table = make_table("rule", "promises", *right, "note", right=right, box=None, pad_edge=False)
    for row in rows:
        kkt = "" if row.worst_kkt is None else f"{row.worst_kkt:.0e}"
        figures = (str(row.draws), f"{row.conflict_share:.1%}", f"{row.worst_cosine:.0e}", kkt, f"{row.median_us:.0f}")
        table.add_row(escape(row.rule), row.guarantee or "", *figures, escape(row.note))
    print_table(table)
