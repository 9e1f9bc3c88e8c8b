"""What the two transports do about workers that fail, call by call: actors that are functions, and fail on order.

That real workers fail in these places is in tests/ray; here it is quick, and says who was asked for what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

from difc_ray.engines.ray import collective, fault_tolerance, pool, transport
from difc_ray.engines.ray.collective import CollectiveTransport
from difc_ray.engines.ray.object_store import ObjectStoreTransport
from difc_ray.engines.ray.pool import WorkerPool
from difc_ray.engines.ray.replica import Broken, Moved, ReplicaArrays, Shared
from difc_ray.engines.ray.rpc import StateArrays, StepRedo
from difc_ray.engines.ray.transport import Transport
from difc_ray.engines.ray.worker import WorkerInfo
from difc_ray.errors import ClusterError
from difc_ray.step.coordinator import Update
from difc_ray.step.worker import ModelState, Rows, Statistics, Token
from difc_ray.tracing import Recorder
from difc_ray.vectors import ParameterLayout
from tests.runs import small_config

ARRAYS = ReplicaArrays(theta_P=np.ones(3, dtype=np.float32), optimizer={})
STATE = ModelState(theta_P=None, buffers={}, loss={})


def lost() -> RayActorError:
    return RayActorError(error_msg="exit type: SYSTEM_ERROR exit detail: gone. More")


def rows(token: Token) -> Rows:
    return Rows(token=token, rows_RP=None, buffers={}, compute_s=0.0)


ANSWERS: dict[str, Callable[..., Any]] = {
    "statistics": lambda token, state: Statistics(token=token, loss=1.0, accuracy=1.0, vectors={}, compute_s=0.0),
    "rows": lambda token, own: rows(token),
    "share": lambda token, own: Shared(rows=rows(token), blocks_CNN=np.ones((1, 3, 3)), sent_bytes=5),
    "combine": lambda token, update: Moved(token=token, sent_bytes=3),
    "replica": lambda: ARRAYS,
    "digest": lambda: "same",
    "commit": lambda step: (),
}


class Actor:
    """A worker whose methods are functions: it dies when it is asked for what a list says."""

    def __init__(self, farm: Farm) -> None:
        farm.actors += 1
        self.farm, self.number, self.dead = farm, farm.actors, False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: lambda: self.answer(method, arguments))

    def answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self.farm.calls.append(f"{self.number} {method}")
        self.dead = self.dead or self.farm.dies.pop(f"{self.number} {method}", False)
        if self.dead:
            raise lost()
        if method == "join" and self.farm.broken:
            return self.farm.broken.pop()
        return ANSWERS.get(method, lambda *_: None)(*arguments)


@dataclass
class Farm:
    """All actors of a test: how many there were, who dies when, what they were asked for."""

    actors: int
    dies: dict[str, bool]
    broken: list[Broken]
    calls: list[str]
    stop: bool = False


class Workers(WorkerPool):
    """Three workers of a farm."""

    def __init__(self, farm: Farm) -> None:
        self.farm, self.config, self.run, self.step = farm, small_config(), "run", 0
        self.stopping = lambda: farm.stop
        self.workers, self.messages, self.spans, self.recorder = [], [], [], Recorder("coordinator")
        self.start(self.config, "run")

    def _first_answers(self, references: list[Any], timeout_s: float) -> list[Any]:
        return [self.hear(index, None, 1.0) for index in range(3)]

    def hear(self, index: int, reference: Any, limit_s: float, *, heeds_stop: bool = True) -> Any:
        answer = reference and reference()
        return answer or WorkerInfo(
            domain=self.names[index], pid=self.workers[index].number, started=0.0, host="host", node="node",
            device="cpu",            layout=ParameterLayout((), ()), log="w.log", address="127.0.0.1",
        )  # fmt: skip

    def spawn(self, index: int) -> Any:
        return Actor(self.farm)

    def end(self, index: int) -> None:
        pass

    def close(self) -> None:
        pass

    def await_place(self, index: int, *, heeds_stop: bool = True) -> None:
        pass


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Farm:
    def get(reference: Any, timeout: float = 0) -> Any:
        return [one() for one in reference] if isinstance(reference, list) else reference()

    fake = SimpleNamespace(
        put=lambda value: value, get=get, wait=lambda references, num_returns=1, timeout=0: (list(references), []),
        exceptions=ray.exceptions, util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"),
    )  # fmt: skip
    for module in (pool, transport, collective):
        monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(fault_tolerance, "draining", dict)
    return Farm(actors=0, dies={}, broken=[], calls=[])


def dies(farm: Farm, *calls: str) -> None:
    farm.calls.clear()
    farm.dies = dict.fromkeys(calls, True)


def restarts(used: Transport) -> list[int]:
    return list(used.pool.policy.restarts.values())


def test_a_replacement_repeats_the_answers_of_the_step_and_the_others_go_on(farm: Farm) -> None:
    used = ObjectStoreTransport(Workers(farm))
    dies(farm, "2 rows")
    used.statistics(STATE, 7)
    assert [reply.token.attempt for reply in used.rows(7, [{}] * 3)] == [0, 1, 0]
    assert farm.calls[3:] == ["1 rows", "2 rows", "3 rows", "4 start", "4 statistics", "4 rows"]
    assert restarts(used) == [0, 1, 0]
    assert used.pool.messages[0].startswith("domain `optdigits`: worker process 2 died (SYSTEM_ERROR: gone) at step 7")


def step(used: CollectiveTransport, number: int) -> None:
    used.statistics(STATE, number)
    used.rows(number, [{}] * 3)
    used.move(Update(step=number, weights_N=np.ones(3)))


@pytest.fixture
def replicated(farm: Farm) -> CollectiveTransport:
    """Three workers that have met and hold the state."""
    used = CollectiveTransport(Workers(farm), "gloo")
    empty: dict[str, Any] = {name: {} for name in ("buffers", "optimizer", "harmonizer", "curvature", "loss")}
    used.take_over(small_config(), StateArrays(step=0, theta_P=ARRAYS.theta_P, skipped=[], **empty))
    return used


@pytest.mark.parametrize("method", ["statistics", "share", "combine"])
def test_a_member_that_is_lost_in_a_step_makes_all_repeat_it(method: str, farm: Farm, replicated: Any) -> None:
    dies(farm, f"2 {method}")
    with pytest.raises(StepRedo):
        step(replicated, 0)
    assert farm.calls[-6:] == ["4 start", "1 replica", "4 hold", "1 join", "4 join", "3 join"]
    step(replicated, 0)
    assert (restarts(replicated), replicated.sent_bytes) == ([0, 1, 0], [8, 8, 8])


def test_a_member_of_which_nobody_knows_whether_it_took_the_step_is_replaced(farm: Farm, replicated: Any) -> None:
    step(replicated, 0)
    dies(farm, "2 commit")
    with pytest.raises(StepRedo):
        step(replicated, 1)
    assert "1 replica" in farm.calls, "the state after step 0, of one that took it"


def test_who_is_lost_while_it_gives_its_state_is_replaced_too(farm: Farm, replicated: Any) -> None:
    dies(farm, "2 share", "1 replica")
    with pytest.raises(StepRedo):
        step(replicated, 0)
    assert farm.calls[-9:-3] == ["1 replica", "3 replica", "4 hold", "5 start", "4 replica", "5 hold"]
    assert restarts(replicated) == [1, 1, 0]
    dies(farm, "4 share", "5 replica", "3 replica")
    with pytest.raises(ClusterError, match="At least one worker must be left"):
        step(replicated, 0)


def test_who_is_lost_while_a_group_forms_is_replaced_and_all_meet_again(farm: Farm, replicated: Any) -> None:
    dies(farm, "2 share", "3 join")
    with pytest.raises(StepRedo):
        step(replicated, 0)
    assert farm.calls[-6:] == ["5 start", "1 replica", "5 hold", "1 join", "4 join", "5 join"]
    farm.broken = [Broken(token=None, reason="no route")] * 20
    with pytest.raises(ClusterError, match="got 5 failures in a row, the last: no route"):
        replicated._rendezvous()


def test_a_run_that_is_to_stop_takes_the_state_of_whoever_has_it(farm: Farm, replicated: Any) -> None:
    step(replicated, 0)
    farm.stop = True
    dies(farm, "1 commit", "2 replica")
    assert replicated._replica() is ARRAYS
    assert farm.calls[-2:] == ["3 commit", "3 replica"]
