"""`logs/`: what every actor of a run reports, one JSON object per line and one file per actor.

``driver.jsonl``, ``coordinator.jsonl``, ``worker-DOMAIN.jsonl``; with `cluster.replicas` above 1
``worker-DOMAIN-1.jsonl`` and on. An actor writes its own file, so that its last words are there when it is killed, and
its replacement appends. An actor that does not see the run's folder writes into the logs of its Ray session instead.

Anything that the package says through :mod:`logging` becomes a line. ``extra`` may hold `event` (else it is `notice`,
`error` or `message`, by level), `domain`, `part` and `step`. Secrets are masked: addresses as everywhere, and wherever
they occur the values of settings and of environment variables whose names sound secret. A file that cannot be written
costs its lines, never the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from difc_ray.files import open_own
from difc_ray.secrets import masked, secret_texts

FOLDER = "logs"

MOST_BYTES = 4 * 2**20
"""A file of this size becomes ``….jsonl.1``, in place of the one before: an actor keeps at most twice as much."""

MOST_CHARACTERS, MOST_OF_A_TRACE = 4_000, 20_000
"""What a message, and the end of a traceback, are cut to."""

PACKAGE = logging.getLogger("difc_ray")

_BY_LEVEL = {logging.WARNING: "notice", logging.ERROR: "error", logging.CRITICAL: "error"}


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whose log it is.

    Args:
        run: name of the run.
        actor: `driver`, `coordinator` or `worker`.
        domain: of a worker.
        part: which worker of its domain, from 1; None: the only one.
    """

    run: str
    actor: str
    domain: str | None = None
    part: int | None = None

    @property
    def file(self) -> str:
        """Name of the file; what may not stand in one is escaped.

        >>> Who(run="r", actor="worker", domain="a/b", part=2).file
        'worker-a%2Fb-2.jsonl'
        """
        words = [self.actor]
        if self.domain is not None:
            safe = quote(self.domain, safe=" ")
            words.append(safe if len(safe) <= 100 else f"{safe[:80]}-{hashlib.sha256(safe.encode()).hexdigest()[:16]}")
        words += [] if self.part is None else [str(self.part)]
        return "-".join(words) + ".jsonl"


class JsonLines(logging.Formatter):
    """A record as one line of JSON.

    Args:
        who: whose records they are.
        secrets: texts that no line may hold.

    Attributes:
        step, attempt: where the actor is; the driver counts steps taken, all others have the step in hand.
        lost: lines that could not be written before this one.
    """

    def __init__(self, who: Who, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self.who, self.secrets = who, sorted(secrets, key=len, reverse=True)
        self.step: int | None = None
        self.attempt = self.lost = 0
        self.host = socket.gethostname()

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        told, who = vars(record), self.who
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "monotonic": round(time.monotonic(), 6),
            "level": record.levelname,
            "run": who.run,
            "actor": who.actor,
            "domain": told.get("domain", who.domain),
            "part": told.get("part", who.part),
            "step": told.get("step", self.step),
            "attempt": self.attempt,
            "event": told.get("event") or _BY_LEVEL.get(record.levelno, "message"),
            "message": self.masked(record.getMessage()[: 2 * MOST_CHARACTERS])[:MOST_CHARACTERS],
            "pid": os.getpid(),
            "node": self.host,
        }
        if record.exc_info and record.exc_info[0] is not None:
            trace = self.formatException(record.exc_info)
            if len(trace) > MOST_OF_A_TRACE:  # whole lines, so that no secret is cut in two
                trace = trace[-MOST_OF_A_TRACE:].partition("\n")[2]
            line["traceback"] = self.masked(trace)
        if self.lost:
            line["lost"] = self.lost
        return json.dumps(line, ensure_ascii=False)

    def masked(self, text: str) -> str:
        """The text without secrets."""
        text = masked(text)
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


class TextLog(logging.FileHandler):
    """A file of log lines that is no link to another."""

    def _open(self) -> TextIOWrapper:
        return cast(TextIOWrapper, open_own(Path(self.baseFilename), self.mode))


class ActorLog(RotatingFileHandler):
    """Writes the lines of one actor; what goes wrong with the file stays here.

    Args:
        path: the file.
        lines: makes the lines.
        level: lines below it are left out.
        away: whether it is not in the run's folder.
    """

    def __init__(self, path: Path, lines: JsonLines, level: int, *, away: bool = False) -> None:
        super().__init__(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", errors="replace", delay=True)
        self.lines, self.away = lines, away
        self.setFormatter(lines)
        self.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line, or counts it as lost."""
        before = self.lines.lost
        super().emit(record)
        if self.lines.lost == before:
            self.lines.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost; the next one opens the file again."""
        self.lines.lost += 1
        broken, self.stream = self.stream, None
        with suppress(OSError, ValueError):
            if broken is not None:
                broken.close()

    def close(self) -> None:
        """Closes the file; what it still held may be lost."""
        with suppress(OSError, ValueError):
            super().close()

    def _open(self) -> TextIOWrapper:
        """The file, at the beginning of a line: a process may have been killed in the middle of one."""
        stream = cast(TextIOWrapper, open_own(Path(self.baseFilename), self.mode))
        with suppress(OSError), open(self.baseFilename, "rb") as written:
            if written.seek(0, os.SEEK_END) and (written.seek(-1, os.SEEK_END), written.read(1))[1] != b"\n":
                stream.write("\n")
        return stream


def begin_log(
    run_dir: Path, who: Who, settings: Mapping[str, Any], *, debug: bool = False, elsewhere: Path | None = None
) -> ActorLog | None:
    """From here on, what the package says in this process goes to a file as well.

    Args:
        run_dir: the run's folder.
        who: whose log it is.
        settings: the run's, nested; what is secret among them is masked in every line.
        debug: whether the finest messages are written too.
        elsewhere: folder for an actor that does not see the run's; None: it makes the run's folder itself.

    Returns:
        The log, to be handed to :func:`end_log`; None where there is no place for one.
    """
    folder, name, away = run_dir / FOLDER, who.file, False
    try:
        if elsewhere is None:
            folder.mkdir(exist_ok=True)
        elif not (folder / Who(run=who.run, actor="driver").file).exists():
            folder, name, away = elsewhere, f"difc_ray-{who.run}-{name}", True
        if not folder.is_dir():
            return None
    except OSError:
        return None
    level = logging.DEBUG if debug else logging.INFO
    log = ActorLog(folder / name, JsonLines(who, secret_texts(settings, os.environ)), level, away=away)
    if not PACKAGE.handlers and not logging.getLogger().handlers and logging.lastResort is not None:
        PACKAGE.addHandler(logging.lastResort)  # which else falls silent with the first handler
    PACKAGE.addHandler(log)
    PACKAGE.setLevel(level)
    return log


def now_at(step: int, attempt: int = 0) -> None:
    """Where this actor is, for the lines to come."""
    for handler in PACKAGE.handlers:
        if isinstance(handler, ActorLog):
            handler.lines.step, handler.lines.attempt = step, attempt


def end_log(log: ActorLog | None, message: str = "ended") -> None:
    """The last line; what could not be written is told to whoever else listens."""
    if log is not None:
        PACKAGE.info("%s", message, extra={"event": "ended"})
        PACKAGE.removeHandler(log)
        log.close()
        if log.lines.lost:
            PACKAGE.warning("`%s` could not be written, the last %d lines are lost", log.baseFilename, log.lines.lost)


def place_of(log: ActorLog | None) -> str:
    """Where the log is, if that is not the run's folder; else empty."""
    return log.baseFilename if log is not None and log.away else ""


@contextmanager
def told_errors() -> Iterator[None]:
    """An exception that passes is reported with its traceback, once."""
    try:
        yield
    except Exception as error:
        if getattr(error, "_told_by", 0) != os.getpid():  # it may have come from another process
            with suppress(AttributeError):
                error._told_by = os.getpid()  # type: ignore[attr-defined]
            PACKAGE.error("%s: %s", type(error).__name__, error, exc_info=True, extra={"event": "error"})
        raise


Actor = TypeVar("Actor", bound=type)


def reports_errors(actor: Actor) -> Actor:
    """Class decorator: exceptions of the public methods are reported before they go to whoever has called."""
    for name, method in list(vars(actor).items()):
        if callable(method) and not name.startswith("_"):
            setattr(actor, name, _reporting(method))
    return actor


def _reporting(method: Any) -> Any:
    @wraps(method)
    def reporting(*arguments: Any, **named: Any) -> Any:
        with told_errors():
            return method(*arguments, **named)

    return reporting
