"""The files in clusters/, offline: Ray's own schema, strict fields, one version, commands that parse, enough GPUs.

Every check is also made on a copy with a mistake in it, which it must find.
"""

from __future__ import annotations

import copy
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from difc_ray.cli.execution import execute
from difc_ray.config.yaml_strict import read_text
from tests.clusters import (
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

ALL = (*LAUNCHER, *KUBERAY, "slurm.sbatch", "runtime_env.yaml", "Dockerfile")
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
    section = (ROOT / "README.md").read_text("utf-8").partition("\n## On a cluster\n")[2].partition("\n## ")[0]
    assert f"`{command}`" in section


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


# --------------------------------------------------------------------------------------- runtime_env, image, Slurm


def test_runtime_env_has_known_fields_and_no_secrets() -> None:
    data = data_of("runtime_env.yaml")
    assert strange_fields(data) == []
    assert strange_fields(data | {"workingdir": "."}) == ["workingdir"]  # which Ray takes without a word
    assert RuntimeEnv(**data)["working_dir"] == "."
    assert all(isinstance(value, str) for value in data["env_vars"].values())
    assert not [name for name in data["env_vars"] if re.search("token|secret|passw|key|uri", name, re.I)]


def strange_fields(data: dict[str, Any]) -> list[str]:
    return [name for name in data if name not in RuntimeEnv.known_fields or name.startswith("_")]


@pytest.mark.parametrize("name", ALL)
def test_no_secret_no_open_dashboard_no_registry(name: str) -> None:
    text = text_of(name)
    assert "0.0.0.0" not in text
    assert not re.search(r"[0-9a-f]{32}", text)
    assert "disabled" not in text
    images = re.findall(r"^\s*(?:image:|FROM) (\S+)$", text, re.M)
    assert set(images) <= {"YOUR_REGISTRY/difc-ray:2.60.0", "rayproject/ray:2.60.0-py311"}


def test_the_image_copies_what_there_is() -> None:
    copied = [line.split()[2:-1] for line in text_of("Dockerfile").splitlines() if line.startswith("COPY")]
    assert copied
    for source in [each for line in copied for each in line]:
        assert (ROOT / source).exists(), source
    assert re.findall(r"^USER (\S+)$", text_of("Dockerfile"), re.M) == ["ray"]


def test_slurm_takes_whole_nodes_and_one_ray_on_each() -> None:
    text = text_of("slurm.sbatch")
    assert subprocess.run(["bash", "-n", str(FOLDER / "slurm.sbatch")], check=False).returncode == 0
    directives = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--exclusive", "--ntasks-per-node=1", "--requeue"} <= set(directives)
    assert text.index("#SBATCH") < text.index("set -euo pipefail")
    temporary = re.search(r"RAY_TMPDIR=(\S+)", text)
    assert temporary is not None
    assert len(temporary[1].replace("$SLURM_JOB_ID", "9" * 10)) <= 37  # as placement.py says


RAY = """#!/bin/bash
[ "$1" = symmetric-run ] || exit 64
ls -l "$RAY_AUTH_TOKEN_PATH" | cut -c1-10 >"$SEEN/mode"
wc -c <"$RAY_AUTH_TOKEN_PATH" >"$SEEN/length"
echo "$RAY_AUTH_MODE ${#RAY_TMPDIR} $*" >"$SEEN/arguments"
[ "$STARTS" = no ] && exit 0
while [ "$1" != -- ]; do shift; done
shift
"$@"
"""


@pytest.mark.parametrize(("starts", "run", "code"), [("yes", 0, 0), ("yes", 3, 3), ("no", 0, 1)])
def test_the_batch_script_with_stand_ins_for_slurm_and_ray(starts: str, run: int, code: int, tmp_path: Path) -> None:
    """Its exit code is that of the run, and 1 where Ray did not start (`ray symmetric-run` then ends with 0)."""
    programs, seen, shared = tmp_path / "bin", tmp_path / "seen", tmp_path / "shared"
    for folder in (programs, seen, shared):
        folder.mkdir()
    srun = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
    python = f'#!/bin/bash\necho "$@" >"$SEEN/run"\nexit {run}\n'
    for name, script in {"srun": srun, "ray": RAY, "python": python}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(stat.S_IRWXU)
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_SUBMIT_DIR": str(shared), "SLURM_CPUS_PER_TASK": "8",
             "SLURM_JOB_NUM_NODES": "3", "SLURM_GPUS_ON_NODE": "1"}  # fmt: skip
    variables = slurm | {"PATH": f"{programs}:{os.environ['PATH']}", "SEEN": str(seen), "STARTS": starts}
    done = subprocess.run(
        ["bash", str(FOLDER / "slurm.sbatch")], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert (seen / "mode").read_text().strip() == "-rw-------"
    assert int((seen / "length").read_text()) == 64
    mode, temporary, *arguments = (seen / "arguments").read_text().split()
    assert (mode, int(temporary) <= 37) == ("token", True)
    assert re.fullmatch(r"[\d.:a-f]+:24711", arguments[arguments.index("--address") + 1])
    assert {"--num-cpus=8", "--num-gpus=1", "cluster.address=auto"} <= set(arguments)
    if starts == "yes":
        assert f"output={shared}/runs/sketch" in (seen / "run").read_text().split()
    assert list(shared.iterdir()) == []  # the token is gone
