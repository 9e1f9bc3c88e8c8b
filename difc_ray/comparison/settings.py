"""Which runs belong to one setting, what a setting is called, and in which values settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from difc_ray.comparison.records import RunRecord

LAM, ALPHA, BETA = "harmonize.lam", "alignment.alpha", "alignment.beta"

NOT_A_SETTING: Final = ("name", "output", "seed", "resume", "engine", "target", "plugins")
"""Keys in which runs of one setting may differ, besides the sections below."""
_SECTIONS: Final = ("tracking.", "cluster.", "checkpoint.")
_IN_THE_METHOD: Final = ("harmonize.rule", "objective")
BUDGET: Final = ("steps", "batch_size", "model", "model_options", "optimizer.name", "optimizer.lr", "eval_every")
"""Keys in which compared methods should agree, unless they were searched."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a method, with all of its runs.

    Args:
        label: what it is called in tables; unique.
        method: rule and objective.
        runs: a run per seed, by seed.
        folds: extra runs that held out one source domain each.
        values: dotted key -> value as text, of the keys that vary among the compared settings.
    """

    label: str
    method: str
    runs: tuple[RunRecord, ...]
    folds: tuple[RunRecord, ...]
    values: Mapping[str, str]

    @property
    def complete(self) -> tuple[RunRecord, ...]:
        """The runs that count."""
        return tuple(run for run in self.runs if run.complete)

    @property
    def status(self) -> str:
        """How the runs ended; run by run where they differ."""
        endings = {run.run_id: _ending(run) for run in self.runs}
        if len(set(endings.values())) == 1 and not any(fold.state == "failed" for fold in self.folds):
            return next(iter(endings.values()))
        parts = [f"seed {run.seed} {endings[run.run_id]}" for run in self.runs]
        parts += [f"seed {fold.seed} without {fold.fold} {_ending(fold)}" for fold in self.folds if not fold.complete]
        return "; ".join(parts)


def group(records: Sequence[RunRecord]) -> tuple[list[Setting], int]:
    """The settings, by number in their sweep or else as they come, and how many repeated runs were left out.

    Of several runs with the same setting, seed and held-out domain, the last complete one counts.
    """
    records = sorted(records, key=_place)
    names = _labels(records)
    kept: dict[tuple[str, int, str | None], RunRecord] = {}
    for record in records:
        key = (names[record.run_id], record.seed, record.fold)
        if key not in kept or record.complete or not kept[key].complete:
            kept[key] = record
    varying = _varying(list(kept.values()))
    members: dict[str, list[RunRecord]] = {}
    for (label, _, _), record in kept.items():
        members.setdefault(label, []).append(record)
    settings = []
    for label, runs in members.items():
        own = sorted((run for run in runs if run.fold is None), key=lambda run: run.seed)
        first = (own or runs)[0]
        values = {key: _text(first, key) for key in varying}
        folds = tuple(run for run in runs if run.fold is not None)
        settings.append(Setting(label=label, method=first.method, runs=tuple(own), folds=folds, values=values))
    return settings, len(records) - len(kept)


def budget_differences(settings: Sequence[Setting]) -> list[str]:
    """Keys of the training budget in which finished runs differ although nobody searched over them."""
    runs = [run for setting in settings for run in setting.complete]
    searched = {key for run in runs for key in run.searched}
    return [key for key in BUDGET if key not in searched and len({run.params.get(key) for run in runs}) > 1]


def _labels(records: Sequence[RunRecord]) -> dict[str, str]:
    """Run id -> label of its setting."""
    identity = {record.run_id: _identity(record) for record in records}
    sweeps = {record.sweep for record in records if record.point is not None}
    alone = len(sweeps) == 1 and all(record.point is not None for record in records)
    label: dict[tuple[object, ...], str] = {}
    taken: set[str] = set()
    for record in records:
        key = identity[record.run_id]
        if key in label:
            continue
        name = (
            record.name if record.point is None else f"#{record.point}" if alone else f"{record.sweep} #{record.point}"
        )
        while name in taken:
            name += "′"
        taken.add(name)
        label[key] = name
    return {run_id: label[key] for run_id, key in identity.items()}


def _identity(record: RunRecord) -> tuple[object, ...]:
    """What the runs of one setting have in common."""
    if record.point is not None:
        return (record.sweep, record.point)
    return (record.method, *sorted((key, value) for key, value in record.params.items() if _counts(key)))


def _varying(records: Sequence[RunRecord]) -> list[str]:
    """Keys with two values or more: those that were searched first, in the order of the sweep."""
    own = [record for record in records if record.fold is None]
    searched = list(dict.fromkeys(key for record in own for key in record.searched))
    others = sorted({key for record in own if record.point is None for key in record.params if _counts(key)})
    keys = [key for key in dict.fromkeys([*searched, *others]) if key not in (*NOT_A_SETTING, *_IN_THE_METHOD)]
    return [key for key in keys if len({_text(record, key) for record in own}) > 1]


def _place(record: RunRecord) -> tuple[str, int]:
    """Settings of a sweep by their number; the others as they come (sorting is stable)."""
    number = record.point or ""
    return (record.sweep or "", int(number)) if number.isdecimal() else ("", 0)


def _counts(key: str) -> bool:
    return key not in NOT_A_SETTING and not key.startswith(_SECTIONS)


def _text(record: RunRecord, key: str) -> str:
    """A value, short enough for a table."""
    number = record.number(key)
    if number is not None:
        return f"{number:.4g}"
    return str(record.searched.get(key, record.params.get(key, "")))


def _ending(run: RunRecord) -> str:
    """`finished`, `stopped at step 100 (…)`, `failed: …`, `running, at step 50`."""
    step = "before the first evaluation" if run.last_step is None else f"at step {run.last_step}"
    if run.state == "stopped" and "step" in run.why:
        return f"stopped: {run.why}"
    if run.state == "stopped":
        return f"stopped {step}{f' ({run.why})' if run.why else ''}"
    if run.state == "failed":
        return f"failed: {run.why or 'no cause was recorded'}"
    if run.state == "finished":
        return "finished" if run.complete else "finished without final accuracies"
    return f"running, {step}"
