"""Reading runs from an MLflow store: only reading, and no store comes into being by it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from difc_ray.comparison.histories import Window, histories
from difc_ray.comparison.records import Curve, RunRecord, record_of, sources_of, trailing_window, validation_key
from difc_ray.errors import ConfigError
from difc_ray.secrets import masked
from difc_ray.tracking import probe
from difc_ray.tracking.uris import sqlite_path

HESSIAN: Final = "align/hessian"
_PATIENCE_S: Final = 5.0


class Store:
    """An MLflow tracking store to read from.

    Args:
        uri: a resolved tracking URI.

    Raises:
        ConfigError: nothing answers there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if uri.startswith("sqlite") and not Path(sqlite_path(uri)).is_file():
            raise ConfigError(
                f"the MLflow store must exist, got `{masked(uri)}` (tracking URI). Name the store of the runs with "
                "`--uri`, or their folders instead of their names."
            )
        if trouble := probe(uri, _PATIENCE_S):
            raise ConfigError(f"the MLflow store must answer, got no usable answer ({masked(uri)}). {trouble}")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient  # here: it takes seconds

        with self._asked():
            self.client: Any = MlflowClient(uri, registry_uri=uri)

    def run(self, run_id: str) -> Any | None:
        """The run of that id; None if there is none."""
        from mlflow.exceptions import MlflowException

        with self._asked():
            try:
                return self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def sweeps(self) -> list[Any]:
        """The parent runs of all sweeps, newest first."""
        with self._asked():
            experiments = self._paged(lambda token: self.client.search_experiments(page_token=token))
        found = self._search([experiment.experiment_id for experiment in experiments], "tags.kind = 'sweep'")
        return sorted(found, key=lambda run: run.info.start_time or 0, reverse=True)

    def children(self, parent: Any) -> list[Any]:
        """The child runs of a run, oldest first."""
        condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        found = self._search([parent.info.experiment_id], condition)
        return sorted(found, key=lambda run: (run.info.start_time or 0, run.info.run_id))

    def records(self, runs: Sequence[Any]) -> list[RunRecord]:
        """The records of runs, with the histories that a comparison needs: one request per metric where possible."""
        domains = sorted({domain for run in runs for domain in sources_of(run)})
        with_domain = {domain: [run for run in runs if domain in sources_of(run)] for domain in domains}
        validations = {domain: self._histories(with_domain[domain], validation_key(domain)) for domain in domains}
        hessians: dict[str, Curve] = {}
        for window in sorted({trailing_window(run) for run in runs}):
            chosen = [run for run in runs if HESSIAN in run.data.metrics and trailing_window(run) == window]
            hessians |= self._histories(chosen, HESSIAN, window)
        return [
            record_of(
                run,
                {domain: validations[domain].get(run.info.run_id, {}) for domain in sources_of(run)},
                hessians.get(run.info.run_id, {}),
            )
            for run in runs
        ]

    def publish(self, run_id: str, files: Sequence[Path], artifact_path: str) -> str | None:
        """Sends files to a run as artifacts; returns the sentence on what went wrong, or None."""
        try:
            for file in files:
                self.client.log_artifact(run_id, str(file), artifact_path)
        except Exception as error:  # whatever a store raises: the files lie on disk already
            words = " ".join(masked(str(error)).split())[:200]
            return f"MLflow did not take the report as artifacts of run {run_id} ({words}); it lies on disk only."
        return None

    def _histories(self, runs: Sequence[Any], key: str, window: Window = None) -> dict[str, dict[int, float]]:
        with self._asked():
            return histories(self.client, [run.info.run_id for run in runs if key in run.data.metrics], key, window)

    def _search(self, experiment_ids: Sequence[str], condition: str) -> list[Any]:
        with self._asked():
            return self._paged(
                lambda token: self.client.search_runs(
                    list(experiment_ids), filter_string=condition, max_results=1000, page_token=token
                )
            )

    @staticmethod
    def _paged(request: Any) -> list[Any]:
        """All pages of an answer."""
        found: list[Any] = []
        token = None
        while True:
            page = request(token)
            found += page
            if not (token := page.token):
                return found

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Turns what MLflow raises into one sentence."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            words = " ".join(masked(str(error)).split())[:300]
            raise ConfigError(
                f"the MLflow store must answer, got {type(error).__name__}: {words} ({masked(self.uri)}). "
                "Check that the server runs, and that its MLflow has the version of this one."
            ) from error
