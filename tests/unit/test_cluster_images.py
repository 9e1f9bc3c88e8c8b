"""`clusters/`: the runtime environment, the image, and the batch script of Slurm."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray.runtime_env import RuntimeEnv

from tests.clusters import (
    ALL,
    FOLDER,
    ROOT,
    data_of,
    text_of,
)


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
