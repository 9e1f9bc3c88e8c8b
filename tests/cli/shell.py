"""The command line as tests use it: in this process, or as a real one."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

SENTENCE = re.compile(r"difc-ray: error: (?P<what>.+?), got (?P<got>.+) \((?P<where>.+)\)\. (?P<remedy>.+[.?`)])")
"""What an error line looks like."""

MODULE = (sys.executable, "-m", "difc_ray")

FAST = ("model=mlp", "steps=6", "eval_every=3", "checkpoint.every=2")
"""A run of a second, once everything is loaded."""


@dataclass(frozen=True)
class Answer:
    """What a command line did."""

    code: int
    out: str
    err: str
    folder: Path = Path()
    """Where it was run."""

    @property
    def errors(self) -> list[str]:
        """The lines on standard error."""
        return self.err.splitlines()


Cli = Callable[..., Answer]
"""A command line, run in this process."""


def difc_ray(*arguments: str, cwd: Path, variables: Mapping[str, str] | None = None, timeout_s: float = 600) -> Answer:
    """``python -m difc_ray`` in a process of its own."""
    done = subprocess.run(
        [*MODULE, *arguments],
        cwd=cwd, env=environment(variables), capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr, cwd)


def started(command: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    """A process with pipes."""
    return subprocess.Popen(
        list(command), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_sentences(answer: Answer, *lines: tuple[str, ...]) -> None:
    """One line per problem, each in the form and with its words."""
    assert len(answer.errors) == len(lines), answer.err
    for line, words in zip(answer.errors, lines, strict=True):
        assert SENTENCE.fullmatch(line), line
        assert all(word in line for word in words), (line, words)


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with the package where it is, one thread, and what is given."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(variables or {})}


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def something_else() -> Iterator[int]:
    """The port of a web server like any other."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def files_below(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table_rows(text: str) -> dict[str, list[str]]:
    """The printed accuracies by domain: train, val, test, all."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: row[2:] for row in rows if len(row) == 6}
