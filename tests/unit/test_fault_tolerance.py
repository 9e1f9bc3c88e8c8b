"""What a lost worker is charged for: the accounts of `cluster.max_worker_restarts`, and the checkpoint at a notice.

A cloud that takes nodes away cannot be had here, nor replacements that are lost on order: both are told by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray import fault_tolerance
from difc_ray.engines.ray.fault_tolerance import Failure, FailurePolicy
from difc_ray.engines.ray.nodes import LOOK_S
from difc_ray.engines.ray.planning import members_of
from difc_ray.engines.ray.pool import WorkerPool
from difc_ray.engines.ray.rpc import StepRedo
from difc_ray.engines.ray.worker import WorkerInfo
from difc_ray.errors import WorkerError
from difc_ray.vectors import ParameterLayout
from tests.checkpoints import names
from tests.faults import Notices
from tests.runs import small_config, train


def info(pid: int, node: str) -> WorkerInfo:
    layout = ParameterLayout((), ())
    return WorkerInfo(
        domain="mnist",
        pid=pid,
        started=0.0,
        host=f"host-{node}",
        node=node,
        device="cpu",
        layout=layout,
        log="w.log",
        address="",
    )


class Accounts(WorkerPool):
    """Three workers whose replacements fare as a list says.

    Args:
        allowed: `cluster.max_worker_restarts`.
        fates: what becomes of one replacement after the other: an error, or nothing.
        node: where they are placed.
    """

    def __init__(self, allowed: int, fates: Sequence[BaseException | None], node: str = "new") -> None:
        self.config = small_config(cluster={"max_worker_restarts": allowed})
        self.members = members_of(self.config)
        self.policy = FailurePolicy(self.config, self.members)
        self.messages, self.step = [], 3
        self.infos, self.workers = [info(100 + i, "old") for i in range(3)], [None] * 3
        self.fates, self.node = list(fates), node

    def end(self, index: int) -> None:
        pass

    def await_place(self, index: int, *, heeds_stop: bool = True) -> None:
        pass

    def spawn(self, index: int) -> Any:
        return None

    def begin(self, index: int) -> Any:
        return None

    def hear(self, index: int, reference: Any, limit_s: float, *, heeds_stop: bool = True) -> WorkerInfo:
        return info(self.infos[index].pid + 1, self.node)

    def restore(self, index: int) -> None:
        if fate := self.fates.pop(0):
            raise fate

    def lose(self, *, announced: bool) -> None:
        failure = Failure(index=0, reason="worker process 100 died with its node", preempted=announced)
        self.replace(failure, self.restore)


def lost() -> RayActorError:
    return RayActorError(error_msg="exit type: SYSTEM_ERROR exit detail: gone. More")


def test_a_loss_with_notice_is_charged_to_nobody() -> None:
    accounts = Accounts(0, [None])
    accounts.lose(announced=True)
    assert accounts.policy.restarts == {"mnist": 0, "optdigits": 0, "fonts": 0}
    (said,) = accounts.messages
    assert said.startswith("domain `mnist`: worker process 100 died with its node at step 3; its node was taken away")
    assert "which counts as no restart; placing it again took" in said
    assert said.endswith("on another node (host-new/new)")


def test_a_loss_without_notice_is_charged() -> None:
    accounts = Accounts(2, [None, None], node="old")
    for count in (1, 2):
        accounts.lose(announced=False)
        assert accounts.policy.restarts["mnist"] == count
        assert f"; restart {count}/2 took" in accounts.messages[-1]
        assert "on another node" not in accounts.messages[-1]
    with pytest.raises(WorkerError, match=r"`mnist` failed at step 3 and has used its 2 restart\(s\): worker process"):
        accounts.lose(announced=False)
    assert accounts.policy.restarts == {"mnist": 2, "optdigits": 0, "fonts": 0}


@pytest.mark.parametrize("fate", [lost(), GetTimeoutError("late")], ids=["lost", "late"])
def test_only_the_loss_itself_is_free_and_not_that_of_a_replacement(fate: BaseException) -> None:
    accounts = Accounts(1, [fate, None])
    accounts.lose(announced=True)
    assert accounts.policy.restarts["mnist"] == 1
    assert len(accounts.messages) == 1
    assert "restart 1/1 took" in accounts.messages[0]
    with pytest.raises(WorkerError, match=r"has used its 0 restart\(s\): (worker process 101 died|its replacement)"):
        Accounts(0, [fate, None]).lose(announced=True)


def test_a_step_that_all_repeat_is_told_with_its_account() -> None:
    accounts = Accounts(0, [StepRedo("other bits")])
    with pytest.raises(StepRedo):
        accounts.lose(announced=True)
    assert "counts as no restart" in accounts.messages[0]


def test_a_loss_is_announced_by_its_error_or_by_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = Accounts(0, [])
    accounts.infos[1] = info(101, "other")
    going: dict[str, str] = {}
    monkeypatch.setattr(fault_tolerance, "draining", lambda: going)
    taken = RayActorError(error_msg="node was preempted", preempted=True)
    assert accounts.lost(0, taken) == Failure(index=0, reason="worker process 100 died with its node", preempted=True)
    assert not accounts.lost(0, lost()).preempted
    going["old"] = "12:00:00"
    assert [accounts.lost(index, lost()).preempted for index in (0, 1)] == [True, False]
    assert accounts.lost(0, GetTimeoutError("late")).preempted  # of an error that knows nothing of nodes


def test_a_notice_is_remembered_when_the_node_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lists no node that is dead; a coordinator that is late would take its loss for one without notice."""
    accounts = Accounts(0, [])
    looks: list[dict[str, str]] = [{"old": "12:00:00"}, {}]
    monkeypatch.setattr(fault_tolerance, "draining", lambda: looks.pop(0))
    accounts.policy.look_for_notices(at_least_s=LOOK_S)
    accounts.policy.look_for_notices(at_least_s=LOOK_S)  # too soon: it does not look
    assert looks == [{}]
    assert accounts.lost(0, lost()).preempted
    assert looks == []


class AtNotice(Notices):
    """What checkpoints there are when a notice comes."""

    def __init__(self, checkpoints: Path) -> None:
        super().__init__()
        self.checkpoints, self.there = checkpoints, list[list[str]]()

    def notice(self, message: str) -> None:
        super().notice(message)
        self.there.append(names(self.checkpoints) if self.checkpoints.is_dir() else [])


def test_a_notice_makes_a_checkpoint_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other is due before the end."""
    warnings = iter(["node abc will be taken away, with b"])
    monkeypatch.setattr(InlineEngine, "warned", lambda engine: next(warnings, ""))
    config = small_config(engine="inline", eval_every=100, checkpoint={"every": 100, "keep": 10}, steps=3)
    seen = AtNotice(tmp_path / "test" / "checkpoints")
    train(config.model_copy(update={"output": tmp_path}), seen)
    (said,) = (line for line in seen.lines if "taken away" in line)
    assert said == "node abc will be taken away, with b: the checkpoint of step 1 is written"
    assert seen.there[seen.lines.index(said)] == ["latest", "step-00000000", "step-00000001"]
