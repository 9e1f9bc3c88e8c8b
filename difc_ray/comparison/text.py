"""The words and numbers of a comparison, the same on the page and in the terminal."""

from __future__ import annotations

from difc_ray.comparison.comparison import Comparison, MethodResult, SeedMean
from difc_ray.comparison.statistics import FEW_PAIRS, Difference
from difc_ray.config import SYMBOLS
from difc_ray.sweeps.selection import Choice


def estimate(value: SeedMean, *, count: bool = False) -> str:
    """An accuracy in percent with its standard error.

    >>> estimate(SeedMean(n=3, mean=0.5, error=0.012)), estimate(SeedMean(n=1, mean=0.5)), estimate(SeedMean(n=0))
    ('50.0 ± 1.2 %', '50.0 %', '')
    """
    if value.mean is None:
        return ""
    error = "" if value.error is None else f" ± {100 * value.error:.1f}"
    return f"{100 * value.mean:.1f}{error} %{f' (n = {value.n})' if count else ''}"


def difference(found: Difference | None) -> str:
    """A paired difference in points with its interval and the number of pairs.

    >>> difference(Difference(n=6, mean=0.021, low=0.004, high=0.035))
    '+2.1 [+0.4, +3.5], 6 pairs'
    >>> difference(Difference(n=2, mean=0.021)), difference(Difference(n=0))
    ('+2.1, 2 pairs: too few', 'no pairs')
    """
    if found is None:
        return ""
    if found.mean is None:
        return "no pairs"
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.1f}, {_pairs(found.n)}: too few"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}], {found.n} pairs"


def rank(method: MethodResult) -> str:
    """A place; `=` after it when the method is tied with another, or has too few pairs with it."""
    return f"{method.rank.place}{'=' if method.rank.tied else ''}"


def tied(method: MethodResult) -> str:
    """The methods that cannot be told apart from this one."""
    return ", ".join(method.rank.tied)


def standing(method: MethodResult) -> str:
    """The setting that stands for a method, and among how many it was chosen."""
    return method.setting.label + (f", best of {method.among}" if method.among > 1 else "")


def pick(comparison: Comparison, choice: Choice) -> str:
    """What a rule picked: setting and method."""
    setting = comparison.setting(choice.point)
    return "" if setting is None else f"{setting.label} ({setting.method})"


def choice_target(choice: Choice) -> str:
    """Target accuracy of a pick."""
    return estimate(SeedMean(n=choice.seeds, mean=choice.target, error=choice.target_error))


def verdict(comparison: Comparison) -> list[str]:
    """What the comparison says, in a few sentences: is it better, and by how much?"""
    where = f"on {comparison.target}" if comparison.ranked_by == "target" else "in validation"
    picked = next(choice for choice in comparison.choices if choice.rule == comparison.selection)
    setting = comparison.setting(picked.point)
    sentences = []
    if setting is not None:
        reached = f" and reaches {choice_target(picked)} on {comparison.target}" if picked.target is not None else ""
        values = ", ".join(f"{SYMBOLS.get(key, key)} {value}" for key, value in setting.values.items() if value)
        name = f"{setting.label} ({setting.method})" if comparison.between_settings else setting.method
        sentences.append(
            f"Selection by `{comparison.selection}` picks `{name}`{f' with {values}' if values else ''}{reached}."
        )
    if comparison.baseline is None:
        return sentences
    compared = dict(comparison.compared)
    own = None if setting is None else setting.label if comparison.between_settings else setting.method
    itself = own == comparison.baseline
    if itself:
        sentences.append("That is the baseline itself.")
    if own in compared:
        sentences.append(_against(compared[own], comparison.baseline, where))
    ahead = [name for name, found in compared.items() if found.above]
    few = [name for name, found in compared.items() if not found.decides]
    same = [name for name, found in compared.items() if name not in few and found.tied]
    behind = [name for name in compared if name not in (*ahead, *same, *few)]
    if len(few) < len(compared) and (len(compared) > 1 or itself):
        undecided = f", {len(few)} with too few pairs{_named(few)}" if few else ""
        sentences.append(
            f"Compared with `{comparison.baseline}` {where}: {len(ahead)} ahead{_named(ahead)}, {len(same)} that "
            f"cannot be told apart{_named(same)}, {len(behind)} behind{_named(behind)}{undecided}."
        )
    elif few and (len(compared) > 1 or itself):
        sentences.append(
            f"Nobody can be said to be ahead of `{comparison.baseline}` {where} or behind it: that takes {FEW_PAIRS} "
            "pairs of seeds."
        )
    return sentences


def _against(found: Difference, baseline: str, where: str) -> str:
    if found.low is None:
        shown = "none" if found.mean is None else f"{_pairs(found.n)}, {100 * found.mean:+.1f} points"
        return (
            f"Against `{baseline}` {where} there are too few pairs of seeds to say anything ({shown}; it takes "
            f"{FEW_PAIRS})."
        )
    interval = (
        f"{100 * (found.mean or 0):+.1f} points, 95 % interval {100 * found.low:+.1f} to {100 * (found.high or 0):+.1f}"
    )
    verdict = "cannot be told apart from" if found.tied else "is ahead of" if found.above else "is behind"
    return f"It {verdict} `{baseline}` {where}: {interval}, {found.n} pairs."


def _pairs(n: int) -> str:
    return f"{n} pair{'' if n == 1 else 's'}"


def _named(names: list[str]) -> str:
    """Up to three names in brackets."""
    if not names:
        return ""
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
