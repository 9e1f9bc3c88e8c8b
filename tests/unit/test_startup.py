"""What is not imported where it is not needed: seconds that everybody would wait for at every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import environment

HEAVY = {
    "albumentations", "matplotlib", "mlflow", "mlxtend", "pandas", "ray", "scipy", "sklearn", "torch", "torchvision",
}  # fmt: skip
COMMAND = "from difc_ray.cli.execution import execute; assert execute({}) == 0"


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("from difc_ray import harmonize; harmonize([[1.0, -0.5], [-0.5, 1.0]], 'gh')", set()),
        (COMMAND.format(["--help"]), set()),
        (COMMAND.format(["rules"]), set()),
        (COMMAND.format(["config"]), {"torch"}),
        (COMMAND.format(["domains", "dataset=digits"]), {"torch"}),
    ],
)  # fmt: skip
def test_nothing_heavy_is_imported_that_is_not_needed(code: str, needed: set[str], tmp_path: Path) -> None:
    told = f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert HEAVY & set(done.stderr.split()) == needed
