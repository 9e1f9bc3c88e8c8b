"""From what a user names (a folder, a sweep, an MLflow run) to the runs in a store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difc_ray.comparison.records import RunRecord
from difc_ray.comparison.store import Store
from difc_ray.errors import ConfigError
from difc_ray.files import read_json
from difc_ray.registry import did_you_mean
from difc_ray.secrets import masked
from difc_ray.tracking import TrackingFolder, resolve_uri
from difc_ray.tracking.uris import sqlite_path, without_credentials

RUNS = Path("runs")
"""Where sweeps and runs lie below the working folder, unless `output` says otherwise."""

_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class NamedRuns:
    """The runs that the arguments name.

    Args:
        title: what they are, for the head of a report.
        records: the runs, without repetition.
        stores: the stores that were read, by URI.
        parent: (store, run id, tags) of the sweep, when one sweep was named and nothing else; else None.
        folder: the folder of that sweep, if it was named by it.
        notes: what a reader should know, one sentence each.
    """

    title: str
    records: list[RunRecord]
    stores: dict[str, Store] = field(default_factory=dict)
    parent: tuple[Store, str, dict[str, str]] | None = None
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Collector:
    """What has been found so far."""

    uri: str | None
    stores: dict[str, Store] = field(default_factory=dict)
    runs: dict[str, tuple[Store, Any]] = field(default_factory=dict)
    parents: list[tuple[Store, Any, Path | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def store(self, uri: str) -> Store:
        """The store at a URI, opened once."""
        if uri not in self.stores:
            self.stores[uri] = Store(uri)
        return self.stores[uri]

    def default_store(self) -> Store:
        """Where names and ids are looked up."""
        return self.store(resolve_uri(self.uri, RUNS, os.environ))

    def add(self, store: Store, run: Any, argument: str, folder: Path | None = None) -> None:
        """A run, or all runs of a sweep.

        Raises:
            ConfigError: the sweep has no runs.
        """
        if run.data.tags.get("kind") != "sweep":
            self.runs.setdefault(run.info.run_id, (store, run))
            return
        self.parents.append((store, run, folder))
        children = store.children(run)
        if not children:
            raise ConfigError(
                f"a sweep must have runs, got none of `{argument}` ({masked(store.uri)}). Start it with "
                "`difc-ray tune`, or send what it recorded with `difc-ray sync`."
            )
        for child in children:
            self.runs.setdefault(child.info.run_id, (store, child))


def find(arguments: Sequence[str], uri: str | None = None) -> NamedRuns:
    """Looks up every argument.

    Args:
        arguments: sweep folders, run folders, names of sweeps, or MLflow run ids of sweeps or runs; at least one.
        uri: tracking URI; None: that of the folder, else ``MLFLOW_TRACKING_URI``, else ``runs/mlflow.db``.

    Raises:
        ConfigError: an argument names nothing, or a sweep without runs.
    """
    collector = _Collector(uri)
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            _add_folder(collector, argument, path.absolute())
        elif path.exists() or "/" in argument:
            kind = "a file" if path.exists() else "which does not exist"
            raise ConfigError(
                f"a sweep or run must be named by its folder, its name or its MLflow run id, got `{argument}`, {kind} "
                "(command line). Run and sweep folders lie under `output` (`runs` by default)."
            )
        elif _RUN_ID.fullmatch(argument):
            store = collector.default_store()
            collector.add(store, _existing(store, argument, "command line"), argument)
        elif collector.uri is None and (RUNS / argument / "sweep.json").is_file():
            _add_folder(collector, argument, (RUNS / argument).absolute())
        else:
            _add_name(collector, argument, _store_of_names(collector, argument))
    records = [
        record
        for store in collector.stores.values()
        for record in store.records([run for owner, run in collector.runs.values() if owner is store])
    ]
    order = {run_id: place for place, run_id in enumerate(collector.runs)}
    records.sort(key=lambda record: order[record.run_id])
    alone = len(arguments) == 1 and len(collector.parents) == 1
    store_, parent_, folder_ = collector.parents[0] if alone else (None, None, None)
    names = list(dict.fromkeys(run.data.tags.get("sweep", run.info.run_name) for _, run, _ in collector.parents))
    others = len(arguments) - len(collector.parents)
    if others:
        names.append(f"{others} run{'s' if others > 1 else ''}")
    return NamedRuns(
        title=" and ".join(names),
        records=records,
        stores=collector.stores,
        parent=(store_, parent_.info.run_id, dict(parent_.data.tags)) if store_ is not None and parent_ else None,
        folder=folder_,
        notes=collector.notes,
    )


def _store_of_names(collector: _Collector, name: str) -> Store:
    """The store in which a name is looked up.

    Raises:
        ConfigError: it is not there: names are known to the store of the working folder, or to the one that is named.
    """
    uri = resolve_uri(collector.uri, RUNS, os.environ)
    if uri.startswith("sqlite") and not Path(sqlite_path(uri)).is_file():
        raise ConfigError(
            f"a name must be that of a sweep in the store of this folder, got `{name}` where there is none "
            f"(`{masked(uri)}`). Name the sweep's folder, `difc-ray compare .../{RUNS}/{name}`, its store with "
            "`--uri`, or change to the folder that it was started in."
        )
    return collector.default_store()


def _add_folder(collector: _Collector, argument: str, folder: Path) -> None:
    """A sweep folder or a run folder: its own tracking files say where it was recorded."""
    sweep = folder / "sweep.json"
    if not sweep.is_file() and not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"a folder must be that of a sweep or a run, got `{argument}` without sweep.json and config.yaml (command "
            "line). Run and sweep folders lie under `output` (`runs` by default)."
        )
    recorded = read_json(TrackingFolder(folder).run)
    current = str(recorded.get("current", ""))
    wanted = resolve_uri(collector.uri, folder.parent, {}) if collector.uri else _with_login(current)
    identity = TrackingFolder(folder).identity(without_credentials(wanted))
    if run_id := identity.get("run_id"):
        store = collector.store(wanted)
        inside = folder if sweep.is_file() else None
        collector.add(store, _existing(store, str(run_id), str(folder)), argument, inside)
        return
    if sweep.is_file() and (name := read_json(sweep).get("name")):
        store = collector.store(resolve_uri(collector.uri, folder.parent, os.environ))
        _add_name(collector, str(name), store, folder)
        return
    raise ConfigError(
        f"a run must have been recorded in MLflow to be compared, got no run of `{argument}` in "
        f"{masked(wanted) if wanted else 'any store'} (tracking/run.json). Send it with `difc-ray sync {argument}`."
    )


def _add_name(collector: _Collector, name: str, store: Store, folder: Path | None = None) -> None:
    """The newest sweep of that name."""
    sweeps = store.sweeps()
    named = [run for run in sweeps if name in (run.data.tags.get("sweep"), run.info.run_name)]
    if not named:
        known = {str(run.data.tags.get("sweep", run.info.run_name)) for run in sweeps}
        remedy = did_you_mean(name, known) if known else "There are no sweeps in this store; name another with `--uri`."
        raise ConfigError(f"unknown sweep, got `{name}` ({masked(store.uri)}). {remedy}")
    if len(named) > 1:
        collector.notes.append(f"{len(named)} sweeps are called `{name}`; this is the newest of them.")
    collector.add(store, named[0], name, folder)


def _existing(store: Store, run_id: str, where: str) -> Any:
    run = store.run(run_id)
    if run is None or run.info.lifecycle_stage != "active":
        what = "a deleted one" if run is not None else "one that is not there"
        raise ConfigError(
            f"an MLflow run must exist in `{masked(store.uri)}`, got `{run_id}`, {what} ({where}). Check the id, or "
            "name the run's store with `--uri`."
        )
    return run


def _with_login(uri: str) -> str:
    """The address, with the login that the environment has for the same store."""
    known = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    return known if known and without_credentials(known) == uri else uri
