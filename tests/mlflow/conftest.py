from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from difc_ray.tracking import UploadSettings
from tests.mlflow.servers import MlflowServer, Proxy


@pytest.fixture(autouse=True)
def _quiet_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # remembered, because `mlflow.set_tracking_uri` sets it too
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The session's MLflow server, running when a test gets it and left running by it."""
    running = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[Proxy]:
    between = Proxy(mlflow_server.port)
    yield between
    between.close()


@pytest.fixture
def quick() -> UploadSettings:
    """Short waits, so that outages of a second are long."""
    return UploadSettings(flush_s=0.1, backoff_first_s=0.1, backoff_max_s=0.4, request_timeout_s=15.0, drain_s=100.0)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    return folder
