"""A cluster whose nodes are lost while runs are on it: run as a program, with a JSON of what to run.

Domain `b` asks for the resource `spot`, which one node after the other has; the head has the coordinator and `a`. When
a run has left its mark, a thread does what the entry says: ``{"name", "config", "mark", "then": [[what, seconds], ...]}``
with `add` (another spot node), `remove` (the oldest one, without a word), `drain` (the same with notice, as a cloud's
preemption) and `wait`.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clusters import health_checks

SMALL_STORE = 80 * 2**20


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

    def do(self, what: str, seconds: float) -> None:
        """One thing, and when it was done."""
        if what == "wait":
            time.sleep(seconds)
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
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **health_checks()}

    import ray

    began = time.monotonic()
    nodes = Nodes()
    done: dict[str, Any] = {}
    try:
        nodes.do("add", 0)
        print(f"{time.monotonic() - began:.1f} s: two nodes", flush=True)
        for each in json.loads((folder / "todo.json").read_text()):
            done[each["name"]] = run(each, nodes, folder)
            print(f"{time.monotonic() - began:.1f} s: {each['name']}", flush=True)
            (folder / "done.json").write_text(json.dumps(done))
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


def run(each: dict[str, Any], nodes: Nodes, folder: Path) -> dict[str, Any]:
    """One run in this process, while another thread sees to the nodes."""
    import ray

    from difc_ray import run
    from difc_ray.config import load_config, resolve
    from difc_ray.errors import DifcError
    from tests.faults import Notices

    notices, error = Notices(), ""
    nodes.times = {}
    config = {**each["config"], "cluster": {**each["config"]["cluster"], "address": nodes.cluster.address}}
    began = time.monotonic()
    with meanwhile(each, nodes, folder):
        try:
            run.train(resolve(load_config(None, base=config)), notices)
        except DifcError as raised:
            error = f"{raised.exit_code} {raised}"
    seconds = time.monotonic() - began
    ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
    groups = [group["state"] for group in ray.util.placement_group_table().values()]
    ray.shutdown()
    return {
        "error": error, "notices": notices.lines, "seconds": seconds, "times": nodes.times,
        "left": [state for state in groups if state != "REMOVED"],
    }  # fmt: skip


@contextmanager
def meanwhile(each: dict[str, Any], nodes: Nodes, folder: Path) -> Iterator[None]:
    """Does what is to be done once the mark is there, in a thread."""
    over = threading.Event()

    def see_to_the_nodes() -> None:
        while not (folder / each["mark"]).exists():
            if over.wait(0.02):
                return
        for what, seconds in each["then"]:
            nodes.do(what, seconds)

    thread = threading.Thread(target=see_to_the_nodes)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
