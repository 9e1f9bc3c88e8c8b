"""Finished runs compared: is it better, and by how much?

:func:`compare` reads runs from MLflow and says what is known; :func:`report` does so, writes the page and hands it to
the sweep's parent run. Importing this package imports neither mlflow nor matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difc_ray.errors import ConfigError

if TYPE_CHECKING:
    from difc_ray.comparison.comparison import Comparison
    from difc_ray.comparison.sources import NamedRuns
    from difc_ray.comparison.writing import Report

ARTIFACTS = "report"
"""Folder of the report of a sweep, and among the artifacts of its run; what was asked for besides follows."""

DEFAULT_RULE = "train_domain_val"
"""The rule that chooses the setting of each method, unless another one is named."""

__all__ = ["ARTIFACTS", "Reported", "compare", "report"]


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A comparison and where it was written.

    Args:
        comparison: what it says.
        report: its files.
        artifacts: their folder among the artifacts of the sweep's run.
        run_id: the MLflow run that has the files as artifacts; None: none has.
        note: why the sweep's run has them not, a sentence; None: it has, or no sweep was compared.
    """

    comparison: Comparison
    report: Report
    artifacts: str = "report"
    run_id: str | None = None
    note: str | None = None


def compare(
    arguments: Sequence[str | Path],
    *,
    uri: str | None = None,
    baseline: str | None = None,
    target: str | None = None,
    selection: str = "train_domain_val",
) -> Comparison:
    """Compares sweeps and runs; writes nothing.

    Args:
        arguments: sweep folders, run folders, names of sweeps, or MLflow run ids of sweeps or runs.
        uri: tracking URI; None: that of the folder, else ``MLFLOW_TRACKING_URI``, else ``runs/mlflow.db``.
        baseline: rule (`mean`), method (`mean + erm`) or setting (`#1`) to compare with; None: `mean` if there is one.
        target: the only target to look at; None: all runs must have the same.
        selection: rule that chooses the setting of each method: `train_domain_val`, `leave_one_domain_out`, `oracle`.

    Raises:
        ConfigError: an argument names nothing, or the runs cannot be compared; the message says why.
    """
    return _compared(_found(arguments, uri), baseline, target, selection)


def report(
    arguments: Sequence[str | Path],
    *,
    out: Path | None = None,
    uri: str | None = None,
    baseline: str | None = None,
    target: str | None = None,
    selection: str = "train_domain_val",
) -> Reported:
    """Compares as :func:`compare` does, writes the report, and adds it to the parent run of a sweep.

    Args:
        arguments: see :func:`compare`.
        out: folder of the report; None: `report` in the sweep's folder if that was given, else `reports/<title>`, with
            `-<baseline>`, `-<target>` and `-<selection>` where they were named.
        uri: see :func:`compare`.
        baseline: see :func:`compare`.
        target: see :func:`compare`.
        selection: see :func:`compare`.

    Raises:
        ConfigError: see :func:`compare`; or the folder cannot be written.
    """
    from difc_ray.comparison.writing import write

    found = _found(arguments, uri)
    comparison = _compared(found, baseline, target, selection)
    choices = {"baseline": baseline, "target": target, "selection": None if selection == DEFAULT_RULE else selection}
    which = "".join(f"-{_slug(value)}" for value in choices.values() if value)  # another comparison is another report
    named = Path("reports") / f"{_slug(found.title) or 'runs'}{which}"
    folder = out or (found.folder / f"{ARTIFACTS}{which}" if found.folder else named)
    written = write(comparison, folder.expanduser())
    if found.parent is None:
        return Reported(comparison=comparison, report=written)
    store, run_id, _ = found.parent
    trouble = store.publish(run_id, [written.page, written.data, *written.figures], f"{ARTIFACTS}{which}")
    return Reported(
        comparison=comparison, report=written, artifacts=f"{ARTIFACTS}{which}", run_id=None if trouble else run_id,
        note=trouble,
    )  # fmt: skip


def _slug(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("._")


def _found(arguments: Sequence[str | Path], uri: str | None) -> NamedRuns:
    from difc_ray.comparison.sources import find

    if not arguments:
        raise ConfigError(
            "there must be something to compare, got nothing (command line). Name a sweep's folder, runs' folders, or "
            "MLflow run ids."
        )
    return find([str(argument) for argument in arguments], uri)


def _compared(found: NamedRuns, baseline: str | None, target: str | None, selection: str) -> Comparison:
    from difc_ray.comparison.comparison import analyse

    return analyse(
        found.records, title=found.title, baseline=baseline, target=target, selection=selection, notes=found.notes
    )
