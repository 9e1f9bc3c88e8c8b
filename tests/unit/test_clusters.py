"""The files in clusters/, offline: Ray's own schema, strict fields, one version, commands that parse, enough GPUs.

Every check is also made on a copy with a mistake in it, which it must find.
"""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image
from ray.autoscaler._private.util import prepare_config, validate_config

from difc_ray.cli.execution import execute
from difc_ray.config.yaml_strict import read_text
from tests.clusters import (
    ALL,
    FIELDS,
    FOLDER,
    KUBERAY,
    LAUNCHER,
    ROOT,
    commands_of,
    data_of,
    lacking,
    nodes_of,
    strange,
    text_of,
    told,
)

FILES_WITH_A_RUN = (*LAUNCHER, *KUBERAY, "slurm.sbatch", "runtime_env.yaml")
FILES_WITH_NODES = (*LAUNCHER, *KUBERAY, "slurm.sbatch")

Change = Callable[[dict[str, Any]], object]


def changed(name: str, change: Change) -> dict[str, Any]:
    """A copy of a file's content with something else in it."""
    data = copy.deepcopy(data_of(name))
    change(data)
    return data


def head_comment(name: str) -> list[str]:
    lines = text_of(name).splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#") or line.startswith("#SBATCH"))]


def test_these_files_and_no_others() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_head_comment_says_what_for_whom_and_one_command(name: str) -> None:
    comment = head_comment(name)
    assert comment[0].startswith("# ")
    assert any(line.startswith("# For: ") for line in comment)
    [at] = [i for i, line in enumerate(comment) if line.startswith("# Command")]
    after = at + next(i for i, line in enumerate(comment[at:]) if line.endswith(":"))
    command = comment[after + 1].removeprefix("#   ")
    assert command != comment[after + 1]
    assert f"clusters/{name}" in command
    assert f"`{command}`" in (ROOT / "docs" / "tutorials" / "cluster.md").read_text("utf-8")


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith(".yaml")])
def test_yaml_is_read_alike_by_a_strict_reader(name: str) -> None:
    """No key is given twice, and no plain scalar means one thing here and another in YAML 1.2."""
    document = read_text(text_of(name), name)
    assert document.problems == []
    assert document.data == data_of(name)


# -------------------------------------------------------------------------------------------- the cluster launcher


def refusal(data: dict[str, Any]) -> str:
    """What `ray up` would say; empty: nothing."""
    try:
        validate_config(prepare_config(copy.deepcopy(data)))
    except (jsonschema.ValidationError, ValueError, AssertionError, KeyError) as error:
        return f"{'.'.join(map(str, getattr(error, 'absolute_path', ())))}: {error}"
    return ""


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_takes_it(name: str) -> None:
    assert refusal(data_of(name)) == ""


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_refuses_a_wrong_key(name: str) -> None:
    assert "'max_wrkers' was unexpected" in refusal(changed(name, lambda data: data.update(max_wrkers=3)))
    assert "docker" in refusal(changed(name, lambda data: data["docker"].update(imge="x")))


NODE_TYPES = {"aws.yaml": "AwsNode", "gcp.yaml": "GcpNode"}


@pytest.mark.parametrize("name", NODE_TYPES)
def test_what_the_launcher_does_not_check(name: str) -> None:
    def found(data: dict[str, Any]) -> list[str]:
        types = data["available_node_types"].items()
        return [each for key, node in types for each in strange(node["node_config"], NODE_TYPES[name], key)]

    data = data_of(name)
    assert found(data) == []
    assert data["available_node_types"]["gpu"]["min_workers"] == 0
    assert data["available_node_types"]["gpu"]["max_workers"] == data["max_workers"]
    spot = {"aws.yaml": "InstanceMarketOptions", "gcp.yaml": "scheduling"}[name]
    assert spot in data["available_node_types"]["gpu"]["node_config"]
    assert spot not in data["available_node_types"]["head"]["node_config"]

    def misspell(data: dict[str, Any]) -> None:
        config = data["available_node_types"]["gpu"]["node_config"]
        config["Scheduling" if name == "gcp.yaml" else "InstanceMarketOption"] = config.pop(spot)

    [wrong] = found(changed(name, misspell))
    assert re.fullmatch(r"gpu\.(Scheduling|InstanceMarketOption): unknown", wrong)


@pytest.mark.parametrize("name", LAUNCHER)
def test_launched_nodes_take_the_token_from_a_file_and_keep_the_dashboard_to_themselves(name: str) -> None:
    data = data_of(name)
    for role in ("head", "worker"):
        starts = [each for each in data[f"{role}_start_ray_commands"] if "ray start" in each]
        [start] = starts
        assert start.startswith("set -a; . ~/.difc-ray.env; set +a;")
        assert "--disable-usage-stats" in start
        assert subprocess.run(["bash", "-n", "-c", start], check=False).returncode == 0
    assert "~/.difc-ray.env" in data["file_mounts"]
    assert any("--dashboard-host=127.0.0.1" in each for each in data["head_start_ray_commands"])
    assert any("/shared:/shared" in option for option in data["docker"]["run_options"])
    for command in data.get("initialization_commands", []):
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------- KubeRay


@pytest.mark.parametrize(("name", "kind"), KUBERAY.items())
def test_kuberay_fields_are_known_and_of_their_kind(name: str, kind: str) -> None:
    data = data_of(name)
    assert (data["apiVersion"], data["kind"]) == ("ray.io/v1", kind)
    assert strange(data, kind) == []


def test_every_kind_in_the_table_of_fields_is_one() -> None:
    simple = {"string", "integer", "number", "boolean", "quantity", "strings", "quantities"}
    for fields in FIELDS.values():
        for kind in fields.values():
            assert (kind[0] if isinstance(kind, list) else kind) in simple | set(FIELDS)


def cluster_of(data: dict[str, Any]) -> dict[str, Any]:
    found = data["spec"].get("rayClusterSpec", data["spec"])
    assert isinstance(found, dict)
    return found


def pods_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(data)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def group_of(data: dict[str, Any]) -> dict[str, Any]:
    found = cluster_of(data)["workerGroupSpecs"][0]
    assert isinstance(found, dict)
    return found


def limits_of(pod: dict[str, Any]) -> dict[str, Any]:
    found = pod["containers"][0]["resources"]["limits"]
    assert isinstance(found, dict)
    return found


MISTAKES: dict[str, Change] = {
    "rayversion: unknown": lambda data: cluster_of(data).update(rayversion="2.60.0"),
    "rayVersion: missing": lambda data: cluster_of(data).pop("rayVersion"),
    "workerGroupSpecs[0].maxReplica: unknown": lambda data: group_of(data).update(maxReplica=3),
    "workerGroupSpecs[0].replicas: '3' is no integer": lambda data: group_of(data).update(replicas="3"),
    "rayStartParams.num-cpus: 4 is no string": lambda data: cluster_of(data)["headGroupSpec"]["rayStartParams"].update(
        {"num-cpus": 4}
    ),
    "containers[0].volumeMount: unknown": lambda data: pods_of(data)[1]["containers"][0].update(volumeMount=[]),
    "volumes[1].emptyDir.sizelimit: unknown": lambda data: pods_of(data)[0]["volumes"][1]["emptyDir"].update(
        sizelimit="1Gi"
    ),
    "limits.cpu: 'four' is no quantity": lambda data: limits_of(pods_of(data)[1]).update(cpu="four"),
}
"""What `strange` says -> the mistake; the CRD's own schema would take the unknown fields, and Kubernetes drop them."""


@pytest.mark.parametrize(("name", "kind"), KUBERAY.items())
@pytest.mark.parametrize("path", MISTAKES)
def test_kuberay_mistakes_are_found_with_their_path(name: str, kind: str, path: str) -> None:
    [told] = strange(changed(name, MISTAKES[path]), kind)
    assert told.startswith(".spec.")
    assert told.endswith(path)


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_shared_memory_a_shared_folder_and_few_rights(name: str) -> None:
    data = data_of(name)
    assert cluster_of(data)["authOptions"] == {"mode": "token"}
    for pod in pods_of(data):
        [container] = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert (
            gibibytes(mounts["/dev/shm"]["emptyDir"]["sizeLimit"])
            <= gibibytes(container["resources"]["limits"]["memory"]) / 2
        )
        assert "persistentVolumeClaim" in mounts["/shared"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["difc-ray-env"]
    head = cluster_of(data)["headGroupSpec"]
    assert float(head["rayStartParams"]["num-cpus"]) < float(
        pods_of(data)[0]["containers"][0]["resources"]["limits"]["cpu"]
    )
    for group in cluster_of(data)["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity[:-2])


def test_the_job_brings_the_variables_of_runtime_env() -> None:
    job = yaml.safe_load(data_of("kuberay-rayjob.yaml")["spec"]["runtimeEnvYAML"])
    assert job == {"env_vars": data_of("runtime_env.yaml")["env_vars"]}


# ------------------------------------------------------------------------------------- versions, commands, room


OLDEST_PYTHON = "3.11"
"""What constraints.txt was made with, and the image has."""


def other_versions(text: str) -> list[str]:
    """Every version of Ray or Python in a file that is not the pinned one."""
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert pinned is not None
    found = re.findall(r"(?:/difc-ray:|rayproject/ray:|rayVersion: \"|__version__ == \"|Ray )(\d+\.\d+[\w.]*)", text)
    pythons = re.findall(r"(?:-py|Python )(3\.?\d+)", text)
    wrong = [version for version in pythons if version.replace(".", "") != OLDEST_PYTHON.replace(".", "")]
    return [version.rstrip(".") for version in found if version.rstrip(".") != pinned[1]] + wrong


@pytest.mark.parametrize("name", ALL)
def test_one_version_of_ray_and_python(name: str) -> None:
    assert other_versions(text_of(name)) == []


@pytest.mark.parametrize("name", [*LAUNCHER, *KUBERAY, "Dockerfile"])
def test_another_version_would_be_seen(name: str) -> None:
    text = text_of(name)
    assert other_versions(text.replace(":2.60.0", ":2.59.1"))
    if name in KUBERAY:
        assert cluster_of(data_of(name))["rayVersion"] == "2.60.0"
        assert other_versions(text.replace('rayVersion: "2.60.0"', 'rayVersion: "2.61.0"')) == ["2.61.0"]


def answer(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of our own command line for the settings of a `train`, with a folder in place of the volume."""
    assert arguments[0] == "train"
    for domain in ("photo", "art", "cartoon", "sketch"):
        for kind in ("circle", "square"):
            (folder / "shared" / "pictures" / domain / kind).mkdir(parents=True, exist_ok=True)
            for i in range(10):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / "shared" / "pictures" / domain / kind / f"{i}.png")
    monkeypatch.chdir(folder)
    here = [argument.replace("=/shared", f"={folder}/shared") for argument in arguments[1:]]
    return execute(["config", "--print", *here])


@pytest.mark.parametrize("name", FILES_WITH_A_RUN)
def test_its_runs_are_commands_of_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = commands_of(name, text_of(name))
    assert len(commands) == 1
    for arguments in commands:
        assert answer(arguments, tmp_path, monkeypatch) == 0
        settings = told(arguments)
        assert settings["output"].startswith("/shared/runs/")
        assert settings["resume"] == "auto"
        assert not {"RAY_AUTH_TOKEN", "tracking.uri"} & set(settings)


def test_a_run_with_an_unknown_setting_would_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FILES_WITH_A_RUN:
        wrong = text_of(name).replace("resume=auto", "resum=auto")
        for arguments in commands_of(name, wrong):
            assert answer(arguments, tmp_path, monkeypatch) == 2
            assert "Did you mean `resume`?" in capsys.readouterr().err


def content(name: str) -> dict[str, Any] | str:
    return text_of(name) if name == "slurm.sbatch" else data_of(name)


@pytest.mark.parametrize("name", FILES_WITH_NODES)
def test_a_gpu_for_every_domain(name: str) -> None:
    [arguments] = commands_of(name, text_of(name))
    assert lacking(nodes_of(name, content(name)), told(arguments)) == []
    # One domain more, and the same nodes are too few.
    more = told(arguments) | {"sources": told(arguments)["sources"] + ",another"}
    assert "room for 3 of 4 domains" in lacking(nodes_of(name, content(name)), more)


def fewer(data: dict[str, Any]) -> None:
    """One GPU less."""
    if "spec" in data:
        data["spec"].get("rayClusterSpec", data["spec"])["workerGroupSpecs"][0].update(replicas=2, maxReplicas=2)
    elif data["provider"]["type"] == "local":
        data["provider"]["worker_ips"].pop()
    else:
        data["available_node_types"]["gpu"]["max_workers"] = 2


@pytest.mark.parametrize("name", FILES_WITH_NODES)
def test_fewer_gpus_than_domains_are_seen(name: str) -> None:
    [arguments] = commands_of(name, text_of(name))
    less = text_of(name).replace("--nodes=3", "--nodes=2") if name == "slurm.sbatch" else changed(name, fewer)
    assert "room for 2 of 3 domains" in lacking(nodes_of(name, less), told(arguments))


def test_who_starts_nodes_for_a_run_is_waited_for() -> None:
    for name in (
        "aws.yaml",
        "gcp.yaml",
        "kuberay-raycluster.yaml",
        "local.yaml",
        "kuberay-rayjob.yaml",
        "slurm.sbatch",
    ):
        [arguments] = commands_of(name, text_of(name))
        grows = name in ("aws.yaml", "gcp.yaml", "kuberay-raycluster.yaml")
        assert (told(arguments).get("cluster.autoscale") == "true") is grows
