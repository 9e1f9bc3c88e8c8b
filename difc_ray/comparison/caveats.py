"""What limits a comparison, and what was left out of it, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from difc_ray.comparison.records import RunRecord
from difc_ray.comparison.settings import Setting, budget_differences
from difc_ray.comparison.statistics import FEW_PAIRS, Difference

Stands = tuple[str, int, Difference | None]


def left_out(records: Sequence[RunRecord], target: str | None) -> list[str]:
    """The sentence on runs that were found and have another target than the one asked for."""
    others = [
        r.target or "none" for r in records if r.fold is None and r.dataset and target not in (None, r.target or "none")
    ]
    if not others:
        return []
    listed = ", ".join(f"`{name}` {others.count(name)}" for name in dict.fromkeys(others))
    plural = len(others) > 1
    return [f"{len(others)} run{'s' * plural} with another target {'are' if plural else 'is'} left out ({listed})."]


def cautions(settings: Sequence[Setting], methods: Sequence[Stands], selection: str, repeated: int) -> list[str]:
    """What limits a comparison, one sentence each.

    Args:
        settings: all of them.
        methods: name of each method, among how many settings it was chosen, and its difference to the baseline.
        selection: rule that chose the settings.
        repeated: repeated runs that were left out.
    """
    notes = []
    runs = [run for setting in settings for run in setting.runs]
    if selection == "oracle":
        notes.append("The settings were chosen on the target itself (oracle): no accuracy on it is an honest estimate.")
    if marked := sum(run.complete and run.params.get("selection") == "oracle" for run in runs):
        notes.append(f"{marked} runs chose their checkpoint on the target; their accuracy on it is no honest estimate.")
    pairs = [difference.n for _, _, difference in methods if difference is not None]
    if pairs and min(pairs) < FEW_PAIRS:
        notes.append(
            f"With fewer than {FEW_PAIRS} pairs of seeds there is no interval, no rank and no verdict: so few "
            f"differences often have one sign by chance. Give every setting {FEW_PAIRS} seeds or more."
        )
    if len(methods) > 2:
        notes.append("Intervals hold for one comparison at a time; they are not corrected for the number of methods.")
    among = [number for _, number, _ in methods]
    if among and max(among) > min(among):
        listed = ", ".join(f"`{name}` {number}" for name, number, _ in methods)
        notes.append(f"Methods had different numbers of settings to choose from: {listed}.")
    counts = {len(setting.complete) for setting in settings if setting.complete}
    if len(counts) > 1:
        notes.append(f"Settings have between {min(counts)} and {max(counts)} seeds that count.")
    if differing := budget_differences(settings):
        listed = ", ".join(f"`{key}`" for key in differing)
        notes.append(f"The runs differ in {listed}, which nobody searched over: a difference may come from there.")
    if stopped := sum(run.complete and run.state == "stopped" for run in runs):
        plural = stopped > 1
        count = f"{stopped} run{'s' * plural} that the scheduler stopped count{'s' * (not plural)}"
        notes.append(f"{count} with what was reached: without such runs a setting would be judged by its lucky seeds.")
    if running := sum(run.state == "running" for run in runs):
        notes.append(f"{running} run{'s are' if running > 1 else ' is'} still going on, and not counted.")
    if repeated:
        notes.append(
            f"{repeated} repeated run{'s' if repeated > 1 else ''} of a setting and seed left out; the last counts."
        )
    return notes
