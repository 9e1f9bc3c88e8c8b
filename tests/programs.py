"""Programs of this folder that have a cluster of their own: told in a file what to run, they tell what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.shell import ROOT, environment


@contextmanager
def short_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder whose name leaves room for the sockets of a Ray below it."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp") as name:
        yield Path(name)


def carried_out(module: str, folder: Path, todo: list[dict[str, Any]], timeout_s: float, **variables: str) -> Any:
    """What ``python -m MODULE FOLDER`` has written to ``done.json``, after it has read ``todo.json``.

    Args:
        module: the program.
        folder: where both lie, and its Ray.
        todo: what it is to run.
        timeout_s: for all of it.
        **variables: more of its environment.
    """
    (folder / "todo.json").write_text(json.dumps(todo))
    (folder / "ray").mkdir()
    given = environment({"RAY_TMPDIR": str(folder / "ray"), "RAY_ADDRESS": "", **variables})
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        env=given, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)  # what took how long
    return json.loads((folder / "done.json").read_text())
