"""The table of faults names tests that exist, and has a line for every fault; and the small ones of its tests."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

from difc_ray.engines.ray.pool import check_same_model
from difc_ray.engines.ray.processes import LOST, describe
from difc_ray.engines.ray.worker import WorkerInfo
from difc_ray.errors import ClusterError
from difc_ray.vectors import ParameterLayout
from tests.clusters import health_checks

ROOT = Path(__file__).resolve().parents[2]
LINES = re.findall(r"^\| (F\d+) \| .* \| .* \| (.*) \|$", (ROOT / "tests" / "FAULTS.md").read_text("utf-8"), re.M)


def test_every_fault_has_a_line_with_a_test_or_a_reason() -> None:
    assert [number for number, _ in LINES] == [f"F{n}" for n in range(1, 48)]
    for number, told in LINES:
        assert "`test_" in told or "no test" in told, number


def test_every_test_that_is_named_exists() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^ *def (test_\w+)\(", sources, re.M))
    named = {name for _, told in LINES for name in re.findall(r"`(test_\w+)`", told)}
    assert len(named) > 60
    assert named - known == set()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError("memory"), "was killed because the node ran out of memory"),
        (ActorUnavailableError("rpc", b"0" * 16), "is out of reach"),
        (ActorDiedError(), "died ("),
    ],
)
def test_what_tells_that_a_process_is_gone(error: Exception, words: str) -> None:
    assert isinstance(error, LOST)
    assert describe(error).startswith(words)
    assert not isinstance(RayTaskError.__new__(RayTaskError), LOST)


def test_workers_that_build_different_models() -> None:
    layout = ParameterLayout(names=("weight",), shapes=((2, 3),))
    info = WorkerInfo(
        domain="a", pid=1, started=0.0, host="here", node="n", device="cpu", layout=layout, log="", address="127.0.0.1"
    )
    other = dataclasses.replace(
        info, domain="b", host="there", layout=ParameterLayout(names=("weight",), shapes=((2, 4),))
    )
    check_same_model([info, info])
    with pytest.raises(ClusterError, match=r"Domain `b` on there built another than `a` on here: .*weight"):
        check_same_model([info, other])


def test_lost_nodes_are_looked_for_in_the_same_way_everywhere() -> None:
    assert health_checks("slurm.sbatch") == health_checks("Dockerfile")
    assert len(health_checks("Dockerfile")) == 4
