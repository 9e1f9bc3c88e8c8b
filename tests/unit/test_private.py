"""What Ray and torch do not promise to keep: where a new version moves it, a sentence says what has moved."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import ray
import torch
from ray._private import ray_constants, worker
from ray._private.state import state
from torch.distributed import distributed_c10d

from difc_ray.engines.ray import private

ENGINES = Path(private.__file__).parents[1]
PRIVATE = re.compile(r"\b(ray\._[a-z]\w*|torch\._[a-zA-Z]\w*|torch\.distributed\.distributed_c10d|_world|_raylet)\b")


def moved(what: str, version: str) -> str:
    return f"{what} has moved in version {version}: mend difc_ray/engines/ray/private.py, which says what it is for"


def test_every_use_of_a_private_part_is_in_one_file() -> None:
    users = {path.name for path in ENGINES.rglob("*.py") if PRIVATE.search(path.read_text(encoding="utf-8"))}
    assert users == {"private.py"}


def test_ray_says_which_nodes_are_to_be_taken_away() -> None:
    assert callable(getattr(state, "get_draining_nodes", None)), moved("Ray's `get_draining_nodes`", ray.__version__)


def test_ray_has_a_switch_for_clusters_of_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    assert isinstance(switch, bool), moved("Ray's `ENABLE_RAY_CLUSTER`", ray.__version__)
    source = Path(ray_constants.__file__).read_text(encoding="utf-8")
    assert private.SEVERAL_NODES in source, moved(f"Ray's variable `{private.SEVERAL_NODES}`", ray.__version__)
    monkeypatch.setattr(worker, "_global_node", None)  # a Ray of this process would answer with its own address
    with private.on_loopback():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert ray.util.get_node_ip_address() == "127.0.0.1", moved("where Ray reads its switch", ray.__version__)
    assert ray_constants.ENABLE_RAY_CLUSTER is switch
    assert private.SEVERAL_NODES not in os.environ


def test_torch_counts_its_process_groups() -> None:
    world = getattr(distributed_c10d, "_world", None)
    count = getattr(world, "group_count", None)
    assert isinstance(count, int), moved("torch's count of process groups", torch.__version__)
    private.forget_process_groups()
    assert distributed_c10d._world.group_count == 0
