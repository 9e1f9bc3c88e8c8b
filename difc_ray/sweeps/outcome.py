"""What a sweep came to: the choice among its settings, and the best model, handed to MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from difc_ray.config import Config, load_config, resolve, to_yaml
from difc_ray.errors import ConfigError
from difc_ray.files import write_json
from difc_ray.runs.reading import read_checkpoint
from difc_ray.runs.state import export_model
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.selection import Candidate, Choice, choose, choose_all
from difc_ray.sweeps.space import Space
from difc_ray.sweeps.trials import trial_config
from difc_ray.tracking import MlflowTracker, TrackingSummary


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep came to.

    Args:
        folder: its folder.
        records: all trials.
        candidates: what selection knows of those that have come to an end, by number.
        choices: what each selection rule picks.
        chosen: what the space's own rule picks.
        best: number of the trial that stands for the chosen setting; None if there is none.
        tracking: the sweep's MLflow run.
    """

    folder: Path
    records: list[TrialRecord]
    candidates: dict[int, Candidate]
    choices: list[Choice]
    chosen: Choice
    best: int | None
    tracking: TrackingSummary | None

    @property
    def failed(self) -> list[TrialRecord]:
        """The trials that failed."""
        return [record for record in self.records if record.status == "failed"]


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting in a table; accuracies in [0, 1], means over the seeds that have come to an end.

    Args:
        setting: its number.
        values: what was searched.
        seeds: how many seeds have come to an end.
        steps: steps taken, from the fewest to the most.
        validation: on the sources' validation splits.
        target: on the target.
    """

    setting: str
    values: Mapping[str, Any]
    seeds: int
    steps: str
    validation: float
    target: float | None


def settings_of(result: SweepResult) -> list[SettingRow]:
    """The settings that have come to an end, best validation first."""
    by_setting: dict[str, list[tuple[TrialRecord, Candidate]]] = {}
    for record in result.records:
        if (candidate := result.candidates.get(record.point.number)) is not None:
            by_setting.setdefault(candidate.point, []).append((record, candidate))
    rows = []
    for setting, members in by_setting.items():
        steps = sorted({record.step for record, _ in members})
        targets = [candidate.target for _, candidate in members if candidate.target is not None]
        rows.append(
            SettingRow(
                setting=setting,
                values=members[0][0].point.values,
                seeds=len(members),
                steps=str(steps[0]) if len(steps) == 1 else f"{steps[0]}-{steps[-1]}",
                validation=math.fsum(candidate.validation for _, candidate in members) / len(members),
                target=math.fsum(targets) / len(targets) if targets else None,
            )
        )
    return sorted(rows, key=lambda row: -row.validation)


def conclude(space: Space, base: Config, folder: SweepFolder) -> SweepResult:
    """Selection over all trials that have come to an end; writes `result.json` and `best.yaml`."""
    records = folder.records()
    candidates = candidates_of(folder, records, base)
    chosen = choose(list(candidates.values()), space.selection)
    best = None
    if chosen.point is not None:
        of_point = [number for number, each in candidates.items() if each.point == chosen.point]
        best = max(of_point, key=lambda number: (candidates[number].validation, -number))
        point = next(record.point for record in records if record.point.number == best)
        config = trial_config(base, point, folder.trials)
        config = config.model_copy(update={"name": None, "output": base.output})
        (folder.path / "best.yaml").write_text(to_yaml(config), encoding="utf-8")
    pool = list(candidates.values())
    result = SweepResult(
        folder=folder.path, records=records, candidates=candidates, choices=choose_all(pool), chosen=chosen, best=best,
        tracking=None,
    )  # fmt: skip
    write_json(
        folder.path / "result.json",
        {
            "name": folder.path.name,
            "selection": space.selection,
            "best": best,
            "choices": [asdict(choice) for choice in result.choices],
            "trials": [{"number": r.point.number, "status": r.status, "reason": r.reason} for r in records],
        },
    )
    return result


def candidates_of(folder: SweepFolder, records: Sequence[TrialRecord], base: Config) -> dict[int, Candidate]:
    """Trials that selection may choose, by number, each with its results on held-out sources."""
    folds: dict[tuple[int, int], dict[str, float]] = {}
    found: dict[int, Candidate] = {}
    for record in sorted(records, key=lambda each: not each.point.fold):
        point, summary = record.point, folder.summary(record.point.number)
        if record.status not in ("finished", "stopped") or summary is None:
            continue
        accuracy = summary["accuracy"]
        if point.fold:
            folds.setdefault((point.setting, point.seed), {})[point.fold] = accuracy[point.fold]["all"]
            continue
        sources = [name for name in accuracy if "val" in accuracy[name]]
        target = summary["target"]
        found[point.number] = Candidate(
            point=str(point.setting),
            seed=point.seed,
            validation=math.fsum(accuracy[name]["val"] for name in sources) / len(sources),
            target=accuracy[target]["all"] if target else None,
            held_out=folds.get((point.setting, point.seed), {}),
        )
    return found


def hand_over(result: SweepResult, base: Config, tracker: MlflowTracker, register: str | None) -> None:
    """Selection and the best model to the sweep's MLflow run."""
    tracker.artifact(result.folder / "result.json")
    if result.best is None:
        if register:
            raise ConfigError(
                f"a model can be registered when a trial has come to an end, got none of {len(result.records)} "
                "(--register). See the table of failed trials."
            )
        return
    tracker.artifact(result.folder / "best.yaml")
    folder = SweepFolder(result.folder)
    summary = folder.summary(result.best)
    assert summary is not None
    run_dir = folder.run_dir(result.best)
    config = resolve(load_config(run_dir / "config.yaml"))
    checkpoint = Path(summary["checkpoint"])
    identity = read_checkpoint(checkpoint).meta["identity"]
    directory = export_model(config, checkpoint, result.folder / "export", identity)
    tracker.tags({"sweep.best": str(result.best), "sweep.best_setting": str(result.chosen.point)})
    values = {"best/validation": result.chosen.score} if result.chosen.score is not None else {}
    tracker.metrics(summary["steps"], values | ({"best/target": result.chosen.target} if result.chosen.target else {}))
    tracker.model(directory, step=summary["selected_step"], register=register)
