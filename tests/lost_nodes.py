"""A cluster whose nodes are lost while runs are on it: run as a program, with a JSON of what to run.

Domain `b` asks for the resource `spot`, which one node after the other has; the head has the coordinator and `a`. An
entry says what is done when its run has left a mark: ``{"name", "config", "marks", "mark", "then": [[what, seconds],
...]}`` with `add` (another spot node), `remove` (the oldest one, without a word), `drain` (notice that it will be, as a
cloud gives it), `wait`, and `release` (leaves the mark `released`).

``python -m tests.lost_nodes FOLDER``: reads ``FOLDER/todo.json``, writes ``FOLDER/done.json`` (by name: error, notices,
seconds, and times of what was done). The health checks are those of the files in clusters/.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.clusters import health_checks
from tests.waiting import PATIENCE_S, eventually

SMALL_STORE = 80 * 2**20


PATIENT = {"RAY_health_check_period_ms": "200", "RAY_health_check_failure_threshold": "15"}
"""A node that is gone, and whose port refuses, is noticed after three seconds, and one that is only slow is not."""


class Nodes:
    """The cluster: a head, and nodes with `spot` that come and go."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": SMALL_STORE},
        )
        self.spots: list[Any] = []
        self.times: dict[str, float] = {}

    def do(self, what: str, seconds: float, marks: Path) -> None:
        """One thing, and when it was done."""
        if what == "wait":
            time.sleep(seconds)
        elif what == "release":
            (marks / "released").touch()
        elif what == "add":
            self.spots.append(self.cluster.add_node(num_cpus=1, resources={"spot": 1}, object_store_memory=SMALL_STORE))
        elif what == "remove":
            self.cluster.remove_node(self.spots.pop(0), allow_graceful=False)
        elif what == "drain":
            self.drain(self.spots[0].node_id, seconds)
        self.times[what] = time.time()

    def drain(self, node: str, seconds: float) -> None:
        """Notice that a node will be taken away after so many seconds."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1e3 * (time.time() + seconds))
        accepted, why = GcsClient(address=self.cluster.address).drain_node(node, reason, "spot reclaim", deadline_ms)
        assert accepted, why


def main(folder: Path) -> None:
    """Starts the cluster, runs everything in order, ends the cluster."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **health_checks(), **PATIENT}

    import ray

    began = time.monotonic()
    nodes = Nodes()
    done: dict[str, Any] = {}
    try:
        nodes.do("add", 0, folder)
        print(f"{time.monotonic() - began:.1f} s: two nodes", flush=True)
        for each in json.loads((folder / "todo.json").read_text()):
            done[each["name"]] = run(each, nodes, folder)
            print(f"{time.monotonic() - began:.1f} s: {each['name']}", flush=True)
            (folder / "done.json").write_text(json.dumps(done))
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


def run(each: dict[str, Any], nodes: Nodes, folder: Path) -> dict[str, Any]:
    """One run in a thread, while this one, as Ray wants it, sees to the nodes."""
    import ray

    from tests.faults import Notices

    notices, errors = Notices(), list[str]()
    nodes.times = {}
    config = {**each["config"], "cluster": {**each["config"]["cluster"], "address": nodes.cluster.address}}
    began, marks = time.monotonic(), folder / each["marks"]
    training = threading.Thread(target=train, args=(config, notices, errors))
    training.start()
    while training.is_alive() and not (marks / each["mark"]).exists():
        time.sleep(0.02)
    for what, value in each["then"]:
        if what == "told":
            eventually(lambda words=value: any(words in line for line in [*notices.lines]), value)
        else:
            nodes.do(what, value, marks)
    training.join(PATIENCE_S)
    assert not training.is_alive(), notices.lines
    seconds = time.monotonic() - began
    ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
    groups = [group["state"] for group in ray.util.placement_group_table().values()]
    ray.shutdown()
    return {
        "error": " ".join(errors), "notices": notices.lines, "seconds": seconds, "times": nodes.times,
        "left": [state for state in groups if state != "REMOVED"],
    }  # fmt: skip


def train(config: dict[str, Any], notices: Any, errors: list[str]) -> None:
    """A run to its end; the error that ended it is put into the list, after its exit code."""
    from difc_ray.config import load_config, resolve
    from difc_ray.errors import DifcError
    from tests import runs

    try:
        runs.train(resolve(load_config(None, base=config)), notices)
    except DifcError as raised:
        errors.append(f"{raised.exit_code} {raised}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
