"""The files in clusters/ as tests read them: strict fields, the commands in them, and what room a cluster has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "clusters"
FIELDS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "unit" / "cluster_fields.yaml").read_text("utf-8"))

LAUNCHER = ("local.yaml", "aws.yaml", "gcp.yaml")
KUBERAY = {"kuberay-raycluster.yaml": "RayCluster", "kuberay-rayjob.yaml": "RayJob"}
ALL = (*LAUNCHER, *KUBERAY, "slurm.sbatch", "runtime_env.yaml", "Dockerfile")

QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
OURS = re.compile(r"python -m difc_ray ([^\n`]+)")


def text_of(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def data_of(name: str) -> dict[str, Any]:
    found = yaml.safe_load(text_of(name))
    assert isinstance(found, dict)
    return found


def strange(value: Any, kind: Any, path: str = "") -> list[str]:
    """What is not as the table of fields says, each with its path; empty: nothing.

    Args:
        value: a value of a file.
        kind: its kind, see cluster_fields.yaml.
        path: where it stands.
    """
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            return [f"{path}: not a list"]
        return [each for i, item in enumerate(value) for each in strange(item, kind[0], f"{path}[{i}]")]
    if kind in FIELDS:
        return list(_strange_mapping(value, FIELDS[kind], path)) if isinstance(value, dict) else [f"{path}: no mapping"]
    if kind in ("strings", "quantities"):
        inner = "string" if kind == "strings" else "quantity"
        if not isinstance(value, dict):
            return [f"{path}: no mapping"]
        return [each for key, item in value.items() for each in strange(item, inner, f"{path}.{key}")]
    return [] if _fits(value, kind) else [f"{path}: {value!r} is no {kind}"]


def _strange_mapping(value: Mapping[str, Any], fields: Mapping[str, Any], path: str) -> Iterator[str]:
    kinds = {name.removesuffix("!"): kind for name, kind in fields.items()}
    for name in fields:
        if name.endswith("!") and name[:-1] not in value:
            yield f"{path}.{name[:-1]}: missing"
    for key, item in value.items():
        if key in kinds:
            yield from strange(item, kinds[key], f"{path}.{key}")
        else:
            yield f"{path}.{key}: unknown"


def _fits(value: Any, kind: str) -> bool:
    if kind == "quantity":
        return type(value) is int or (isinstance(value, str) and bool(QUANTITY.fullmatch(value)))
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
    }
    return type(value) in kinds[kind]


def health_checks(name: str = "Dockerfile") -> dict[str, str]:
    """What a file tells the head about looking for lost nodes."""
    return dict(re.findall(r"\b(RAY_health_check_\w+)=(\d+)", text_of(name)))


@dataclass(frozen=True)
class Node:
    """A machine or pod as Ray will count it."""

    cpus: float
    gpus: float


def nodes_of(name: str, data: dict[str, Any] | str) -> list[Node]:
    """All nodes that a file can have at once; CPUs are infinite where they are those of a machine that is there."""
    if isinstance(data, str):
        told = {key: int(value) for key, value in re.findall(r"^#SBATCH --([a-z-]+)=(\d+)(?:\s|$)", data, re.M)}
        return [Node(told["cpus-per-task"], told["gpus-per-node"])] * told["nodes"]
    if name in KUBERAY:
        spec = data["spec"].get("rayClusterSpec", data["spec"])
        head = spec["headGroupSpec"]["rayStartParams"]
        nodes = [Node(float(head["num-cpus"]), float(head["num-gpus"]))]
        count = "maxReplicas" if spec.get("enableInTreeAutoscaling") else "replicas"
        for group in spec["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            nodes += [Node(float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))] * group[count]
        return nodes
    if data["provider"]["type"] == "local":
        start = " ".join(data["head_start_ray_commands"])
        given = {key: float(value) for key, value in re.findall(r"--num-(cpus|gpus)=(\d+)", start)}
        workers = min(data["max_workers"], len(data["provider"]["worker_ips"]))
        return [Node(given["cpus"], given["gpus"]), *[Node(float("inf"), 1)] * workers]
    nodes = []
    for kind, node in data["available_node_types"].items():
        count = 1 if kind == data["head_node_type"] else min(node["max_workers"], data["max_workers"])
        nodes += [Node(node["resources"]["CPU"], node["resources"]["GPU"])] * count
    return nodes


def commands_of(name: str, text: str) -> list[list[str]]:
    """The arguments of every `python -m difc_ray` in a file, in its comments too; shell variables become a folder."""
    if name == "kuberay-rayjob.yaml":
        return [shlex.split(each) for each in OURS.findall(yaml.safe_load(text)["spec"]["entrypoint"])]
    assigned = re.search(r"^output=\$shared(\S+)$", text, re.M)
    joined = re.sub(r"\\\n\s*", " ", text.replace("$output", f"$shared{assigned[1]}") if assigned else text)
    plain = re.sub(r'"?\$\{?\w+\}?([^\s"]*)"?', r"/shared\1", joined)
    return [shlex.split(each) for each in OURS.findall(plain) if each.startswith("train")]


def told(arguments: list[str]) -> dict[str, str]:
    """The settings of a command line."""
    return dict(argument.split("=", 1) for argument in arguments if "=" in argument)


def lacking(nodes: list[Node], settings: Mapping[str, str]) -> list[str]:
    """What a run with these settings would not get on these nodes."""
    cpus, gpus = float(settings["cluster.cpus_per_worker"]), float(settings["cluster.gpus_per_worker"])
    domains = len(settings["sources"].split(","))
    fitting = sum(min(int(node.gpus / gpus), 10**6 if node.cpus == float("inf") else int(node.cpus / cpus))
                  for node in nodes)  # fmt: skip
    found = [f"room for {fitting} of {domains} domains"] if fitting < domains else []
    if sum(node.cpus for node in nodes) < cpus * (domains + 1):
        found.append("no CPUs for the coordinator")
    return found
