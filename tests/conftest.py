"""Session fixtures, and police: a test that leaves threads, processes or environment variables behind fails."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.processes import STARTED, children_of_ours, command_of, remember_start

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DIFC_RAY_TRACKING_DRAIN_S", "100")  # a busy machine sends for longer; that is no outage
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that spin at barriers starve the other test processes
os.environ["RAY_AUTH_MODE"] = "token"  # every Ray of the suite wants a token, and only this process tree has it
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or hundreds of processes would compile the package again
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("COLUMNS", None)  # a worker of a parallel run is told a width
os.environ.pop("MLFLOW_TRACKING_URI", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so begins what a script starts with `&`, and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

import psutil
import pytest

from tests.longest import LONGEST
from tests.tiers import FIXTURES, OUTSIDE, is_core

ALLOWED_VARIABLES = (
    "RAY_",
    "PYTEST_",
    "CUDA_",
    "MPL",
    "KMP_",
    "TF_",
    "TORCH",
    "MLFLOW_",
    "COLUMNS",
    "LINES",
    "LD_LIBRARY",
)
"""What libraries set when they are imported (OpenCV: the last one)."""


gc.disable()  # until all tests are collected: nothing of that is garbage, and looking for it takes a third of the time
sys.dont_write_bytecode = False
sys.addaudithook(remember_start)


@pytest.hookimpl(tryfirst=True)  # before pytest looks for what `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks from fixtures, the tiers, and the longest files first.

    A parallel run, in which files stay together, then ends with short ones. With `--no-loadscope-reorder`; what xdist
    would put last are files with few tests, which are the longest.
    """
    STARTED.clear()
    for item in items:
        for name in set(FIXTURES).intersection(getattr(item, "fixturenames", ())):
            item.add_marker(FIXTURES[name])
        if is_core(item.nodeid, [mark.name for mark in item.iter_markers()]):
            item.add_marker("core")
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Environment variables and child processes are as before (the session's Ray and MLflow aside)."""
    environment = dict(os.environ)
    shared = {name for name in ("ray_session", "mlflow_server") if name in request.fixturenames}
    children = {child.pid for child in children_of_ours()}
    yield
    started = list(STARTED)  # by its fixtures as well
    STARTED.clear()
    if not any(request.node.get_closest_marker(mark) for mark in OUTSIDE):
        assert not started, f"a test that starts processes must be marked `process`; it started {started}"
    changed = {name for name in set(environment) ^ set(os.environ) if not name.startswith(ALLOWED_VARIABLES)}
    changed |= {n for n in environment if n in os.environ and environment[n] != os.environ[n]
                and not n.startswith(ALLOWED_VARIABLES)}  # fmt: skip
    assert not changed, f"the test changed environment variables: {sorted(changed)}"
    if not shared:
        left = [child for child in children_of_ours() if child.pid not in children]
        _, alive = psutil.wait_procs(left, timeout=30)
        names = [name for child in alive if (name := " ".join(command_of(child)[:4]))]
        assert not [name for name in names if "resource_tracker" not in name], f"the test left processes: {names}"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray cluster for the whole session, in a temporary folder of its own, with token authentication.

    It tells its metrics every two seconds in place of ten, for which a test would wait, and waits longer than a second
    for the news of why an actor does not answer, which may be late on a busy machine.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="difc", dir="/tmp" if Path("/tmp").is_dir() else None)
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=400 * 2**20, _temp_dir=folder,
        _system_config={"metrics_report_interval_ms": 2000, "timeout_ms_task_wait_for_death_info": 60_000},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test sees no cache of pictures but its own: neither that of another test, nor of whoever runs them."""
    from difc_ray.data.image_folder import index

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    index._READ.clear()
