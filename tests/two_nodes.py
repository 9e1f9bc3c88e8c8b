"""A cluster of two nodes on this machine, and command lines on it: run as a program, with a JSON of what to run.

Each node is started in a folder of its own, so that ``/proc/self/cwd/...`` is another folder on each of them, as a path
that is not shared is; the second one may find another version of torch first. The program ends all that it has started.

``python -m tests.two_nodes FOLDER``: reads ``FOLDER/todo.json`` (a list of ``{"name", "arguments", "wait_for"?}``),
writes ``FOLDER/done.json`` (by name: code, out, err, seconds). With ``hold``, somebody else holds ``site_b`` meanwhile.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Starts the cluster, runs everything in order, ends the cluster."""
    for name in ("here", "there"):
        (folder / name).mkdir(exist_ok=True)
    other = folder / "torch-9.9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    import ray
    from ray.cluster_utils import Cluster

    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:.1f} s: {what}", flush=True)

    cluster = Cluster()
    try:
        os.chdir(folder / "here")
        cluster.add_node(num_cpus=2, num_gpus=2, include_dashboard=False, resources={"site_a": 1},
                         labels={"zone": "east"})  # fmt: skip
        os.chdir(folder / "there")
        cluster.add_node(num_cpus=2, resources={"site_b": 1}, labels={"zone": "west"})
        os.chdir(folder / "here")
        tell("two nodes")
        os.environ["RAY_ADDRESS"] = cluster.address
        todo = json.loads((folder / "todo.json").read_text())
        done: dict[str, Any] = {}
        for each in [one for one in todo if not one.get("odd")]:
            done[each["name"]] = held(each) if each.get("hold") else answer(each["arguments"])
            tell(each["name"])
        os.chdir(folder / "there")
        variables = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"}
        cluster.add_node(num_cpus=2, resources={"odd": 1}, env_vars=variables)
        os.chdir(folder / "here")
        for each in [one for one in todo if one.get("odd")]:
            done[each["name"]] = answer(each["arguments"])
            tell(each["name"])
        (folder / "done.json").write_text(json.dumps(done))
    finally:
        ray.shutdown()
        cluster.shutdown()


def answer(arguments: list[str]) -> dict[str, Any]:
    """A command line in this process."""
    from difc_ray.cli.execution import execute

    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(arguments)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - began}


def held(each: dict[str, Any]) -> dict[str, Any]:
    """A command line, while another job has what it wants."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from difc_ray.engines.ray import placement

    def connected() -> None:
        ray.init(log_to_driver=False, logging_level="ERROR", namespace="another")

    connected()
    group = placement_group([{"site_b": 1}], lifetime="detached", name="another")
    assert group.wait(120)
    ray.shutdown()
    before, placement.TELL_S = placement.TELL_S, 1.0
    try:
        return answer(each["arguments"])
    finally:
        placement.TELL_S = before
        connected()
        remove_placement_group(ray.util.get_placement_group("another"))
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
