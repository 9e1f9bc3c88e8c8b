"""One MLflow run in one store: created once, found again, written to. Imports mlflow when it is constructed."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from difc_ray.files import exclusive, read_json, write_json
from difc_ray.secrets import masked
from difc_ray.tracking.failures import ParentAbsentError, RefusedError, UnavailableError, judge, reason
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.names import clean_key
from difc_ray.tracking.uris import sqlite_path, without_credentials

KEY_TAG = "difc_ray.run_key"
"""Tag by which a run is found when the answer to its creation was lost."""
PARENT_TAG = "mlflow.parentRunId"
"""Tag with which MLflow shows a run below another one."""
ATTEMPT_TAG = "difc_ray.attempt"
"""Tag with the number of a run's last continuation, whose ``resume.<n>.<name>`` tags hold; absent before the first."""
_DATABASE_SETUP_S = 120.0


class RunStore:
    """The MLflow side of a run.

    Args:
        folder: the run's tracking files; ``run.json`` remembers what was created.
        uri: the tracking URI.
    """

    def __init__(self, folder: TrackingFolder, uri: str) -> None:
        self.uri = uri
        self.key = ""
        self._folder = folder
        self._store = without_credentials(uri)
        self._client: Any = None
        identity = folder.identity(self._store)
        self.run_id: str | None = identity.get("run_id")
        self.experiment_id: str | None = identity.get("experiment_id")
        self.parent_id: str | None = None
        """The run that this one is nested in, once :meth:`open` has found it."""
        self.models: dict[str, str] = dict(identity.get("models", {}))

    @property
    def client(self) -> Any:
        """MLflow's client, connected on first use."""
        if self._client is None:
            from mlflow.tracking import MlflowClient

            with one_at_a_time(self.uri):  # two processes that create the same database break its migration
                self._client = MlflowClient(self.uri, registry_uri=self.uri)
        return self._client

    def open(self, start: Mapping[str, Any], time: int) -> None:
        """Create the run of a ``start`` record, or continue it.

        Args:
            start: the record's fields.
            time: its time in ms.

        Raises:
            ParentAbsentError: the run that this one is nested in is not in the store.
        """
        self.key = str(start["key"])
        if self.experiment_id is None:
            self.experiment_id = self._experiment(str(start["experiment"]))
        if start.get("parent"):
            self.parent_id = self._parent(str(start["parent"]))
        if self.run_id is None:
            self.run_id = self._created_before() or self._create(start, time)
            self.remember()
        if start["attempt"]:
            self.client.update_run(self.run_id, status="RUNNING")
            if "error" in self.client.get_run(self.run_id).data.tags:  # of the attempt before
                self.client.delete_tag(self.run_id, "error")

    def log(
        self,
        *,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Sequence[tuple[str, str]] = (),
        tags: Sequence[tuple[str, str]] = (),
    ) -> None:
        """One ``log_batch`` request: metrics are (key, value, time in ms, step)."""
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            self.run_id,
            metrics=[Metric(*metric) for metric in metrics],
            params=[Param(*param) for param in params],
            tags=[RunTag(*tag) for tag in tags],
        )

    def params(self) -> dict[str, str]:
        """The parameters that the run has already."""
        return dict(self.client.get_run(self.run_id).data.params)

    def log_artifact(self, path: Path, folder: str) -> None:
        """Upload a file, or a directory with its content."""
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        send(self.run_id, str(path), folder or None)

    def end(self, run_id: str, status: str, time: int, error: str | None) -> None:
        """Close the run, with the tag ``error`` if there is one."""
        if error:
            self.client.set_tag(run_id, "error", error)
        self._remove_twins()
        self.client.set_terminated(run_id, status, end_time=time)

    def remember(self) -> None:
        """Write what was created to ``run.json``."""
        content = read_json(self._folder.run)
        stores = content.get("stores", {})
        stores[self._store] = {
            "uri": masked(self.uri), "run_id": self.run_id, "experiment_id": self.experiment_id, "models": self.models,
        }  # fmt: skip
        write_json(self._folder.run, {"current": self._store, "stores": stores})

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            from mlflow.exceptions import MlflowException

            try:
                return str(self.client.create_experiment(name, artifact_location=self._artifact_location(name)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another run was faster
        if found.lifecycle_stage != "active":
            raise UnavailableError(
                f"The experiment `{name}` on `{masked(self.uri)}` is deleted. Restore it with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or choose another `tracking.experiment`."
            )
        return str(found.experiment_id)

    def _artifact_location(self, experiment: str) -> str | None:
        """Beside the database (MLflow's default would be the working directory); a server decides for itself."""
        if self.uri.startswith(("http", "databricks")):
            return None
        is_file = self.uri.startswith("sqlite")
        base = Path(sqlite_path(self.uri)).parent if is_file else self._folder.run_dir.absolute().parent
        return (base / "mlartifacts" / clean_key(experiment).replace("/", "_").replace(":", "_")).as_uri()

    def _create(self, start: Mapping[str, Any], time: int) -> str:
        nested = {PARENT_TAG: self.parent_id} if self.parent_id else {}
        run = self.client.create_run(
            self.experiment_id, start_time=time, run_name=start["run_name"], tags={KEY_TAG: self.key, **nested}
        )
        return str(run.info.run_id)

    def _created_before(self) -> str | None:
        twins = self._with_key(self.key)
        return twins[0] if twins else None

    def _parent(self, key: str) -> str:
        """The run of that key; of several, the one that the sweep's own files name, because the others will go."""
        found = self._with_key(key)
        above = self._folder.sweep()
        if not found:
            what = f"`difc-ray sync {shlex.quote(str(above.run_dir))}`" if above else "`difc-ray sync` of its folder"
            raise ParentAbsentError(
                f"The sweep that this run is a trial of is not on `{masked(self.uri)}` yet. Send the whole sweep with "
                f"{what}."
            )
        named = above.identity(self._store).get("run_id") if above else None
        return str(named) if named in found else found[0]

    def _with_key(self, key: str) -> list[str]:
        """The runs of a journal in the store, oldest first; more than one after an answer was lost."""
        found = self.client.search_runs([self.experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'")
        return [run.info.run_id for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]

    def _remove_twins(self) -> None:
        """Delete runs that a creation request made after its answer had been given up for lost."""
        if not self.key:
            self.key = self.client.get_run(self.run_id).data.tags.get(KEY_TAG, "")
        for run_id in self._with_key(self.key) if self.key else ():
            if run_id != self.run_id:
                self.client.delete_run(run_id)


def answer(uri: str, run_id: str) -> dict[str, Any]:
    """The ``params`` and ``tags`` of a run; or ``absent`` if there is none, ``failed`` if the store does not say."""
    from mlflow.tracking import MlflowClient

    try:
        with one_at_a_time(uri):
            client = MlflowClient(uri, registry_uri=uri)
        data = client.get_run(run_id).data
    except Exception as error:
        verdict = judge(error, uri)
        return {"absent" if isinstance(verdict, RefusedError) else "failed": str(verdict or reason(error))}
    return {"params": dict(data.params), "tags": dict(data.tags)}


@contextlib.contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Around connecting to a SQLite database, which creates or migrates it."""
    if not uri.startswith("sqlite"):
        yield
        return
    path = Path(sqlite_path(uri))
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_name(f"{path.name}.lock"), _DATABASE_SETUP_S):
        yield
