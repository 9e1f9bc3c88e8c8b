"""Files that are never seen half-written, that no link leads elsewhere, and that one process at a time may have."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

import psutil
from filelock import FileLock, Timeout

from difc_ray.errors import CheckpointError

UNFINISHED = ".tmp-"
"""What the names of files that are still being written begin with."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without locks answer."""

_LETTING_GO_S = 0.2
"""A holder that is just removing the file is waited for."""


# ---------------------------------------------------------------------------------------------------- writing


def open_own(path: Path, mode: str) -> IO[Any]:
    """Opens a file for writing, text in UTF-8, unless its name is a link, which could lead out of its folder.

    Raises:
        OSError: it is a link, or cannot be written.
    """
    encoding = None if "b" in mode else "utf-8"
    try:
        return open(path, mode, encoding=encoding, opener=lambda name, how: os.open(name, how | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, which could lead elsewhere", str(path)) from error
        raise


def inside(folder: Path, name: str) -> Path:
    """A file or a folder of this name in a folder that may come from somebody else.

    Args:
        folder: the folder.
        name: relative to it.

    Raises:
        OSError: the name leads out of the folder, or there, or below, is a link or what is neither file nor folder.
    """
    path, within = folder / name, Path(name)
    if within.is_absolute() or ".." in within.parts or "\0" in name:
        raise OSError(errno.EPERM, "a name that leads out of its folder", name)
    steps = [folder.joinpath(*within.parts[: count + 1]) for count in range(len(within.parts))]
    below = [Path(top, entry) for top, folders, files in os.walk(path) for entry in (*folders, *files)]
    for each in (*steps, *below):
        mode = each.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a link, which could lead elsewhere" if stat.S_ISLNK(mode) else "neither a file nor a folder"
            raise OSError(errno.ELOOP if stat.S_ISLNK(mode) else errno.EPERM, kind, str(each))
    return path


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes this name at the end of the block: who reads it finds the old or the new content.

    After an exception the old content stays. A link of this name is replaced, not followed.

    Args:
        path: the file; its folder must exist.
        durable: whether to wait until it is on the disk, so that it outlives a loss of power.
    """
    temporary = path.with_name(private_name(UNFINISHED, path.name))
    temporary.unlink(missing_ok=True)
    try:
        with cast("BinaryIO", open_own(temporary, "xb")) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush(path.parent)


def replace(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file whole or not at all; see :func:`replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    replace(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_name(prefix: str, name: str) -> str:
    """A name for what this process is about to finish: it says whose leftover it is, should the process die."""
    return f"{prefix}{name}@{socket.gethostname()}@{os.getpid()}"


# ---------------------------------------------------------------------------------------------------- locks


class Lock:
    """A file that one process at a time holds, and that names it; a context manager.

    What excludes others is the operating system's lock on the file. It ends with the process however it dies, so the
    file of a killed one is taken over at once; processes that the holder forks, such as those of a loader, have no
    part in it. On a file system without locks the named process is looked up instead; if that is on another host
    nobody can tell, and the lock is refused.

    Args:
        path: the file; its folder must exist.
        rule: what only one process may do, as the beginning of an error.
        remedy: what to do where another one has it.
    """

    def __init__(self, path: Path, *, rule: str, remedy: str) -> None:
        self.path, self._rule, self._remedy = path, rule, remedy
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False)
        self._owner: int | None = None

    def acquire(self, wait_s: float = 0.0) -> None:
        """Takes the lock.

        Args:
            wait_s: how long to wait for its holder to end, in seconds.

        Raises:
            CheckpointError: another process has it, or the folder cannot be written.
        """
        if self._owner == os.getpid():
            return
        try:
            self.path.parent.stat()  # filelock would make the folder
            self._take(wait_s)
            with open_own(self.path, "w") as file:
                json.dump(_myself(), file)
        except OSError as error:
            self._lock.release()
            raise CheckpointError(
                f"a run folder must be writable, got {error.strerror} (`{self.path}`). Choose another `output`."
            ) from error
        self._owner = os.getpid()

    def _take(self, wait_s: float) -> None:
        """The operating system's lock; where there is no such thing, whether the process in the file is gone."""
        try:
            self._lock.acquire(timeout=max(wait_s, _LETTING_GO_S))
        except Timeout:
            raise self._in_use(read_json(self.path), "") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            end = time.monotonic() + wait_s
            while _may_live(holder := read_json(self.path)):
                if time.monotonic() >= end:
                    raise self._in_use(holder, f" If it is surely gone, delete `{self.path}`.") from None
                time.sleep(0.1)

    def _in_use(self, holder: dict[str, Any], remedy: str) -> CheckpointError:
        named = {"pid", "host", "since"} <= set(holder)
        who = f"pid {holder['pid']} on host {holder['host']} since {holder['since']}" if named else "another process"
        folder = self.path.parent
        return CheckpointError(f"{self._rule}, got one in use by {who} (`{folder}`). {self._remedy}{remedy}")

    def release(self) -> None:
        """Gives the lock back and removes the file; without effect in a process that does not hold it."""
        if self._owner == os.getpid():
            with suppress(OSError):
                self.path.unlink()  # under the lock: who has opened it meanwhile finds it nameless, and opens it again
            self._lock.release()
            self._owner = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def exclusive(path: Path, wait_s: float) -> Iterator[None]:
    """Holds the operating system's lock on a file; after ``wait_s`` seconds, or where there are none, goes on without.

    Args:
        path: the file, made if it does not exist.
        wait_s: seconds.
    """
    lock = FileLock(path, timeout=wait_s, fallback_to_soft=False)
    try:
        with suppress(OSError):  # also when the time is over
            lock.acquire()
        yield
    finally:
        lock.release()


def start_of_this() -> float:
    """When this process began, in seconds since 1970: with its number it tells it from all others of its machine."""
    return float(psutil.Process().create_time())


def process_alive(pid: int, started: float | None, host: str) -> bool:
    """Whether that process runs; one on another host counts as running, because nobody here can tell.

    Args:
        pid: its number.
        started: its start time in seconds since 1970, None to ask for the number only.
        host: its host name.
    """
    if host != socket.gethostname():
        return True
    try:
        process = psutil.Process(pid)
        same = started is None or abs(process.create_time() - started) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _may_live(holder: dict[str, Any]) -> bool:
    try:
        return process_alive(int(holder["pid"]), float(holder["started"]), str(holder["host"]))
    except (KeyError, TypeError, ValueError):
        return False


def _myself() -> dict[str, Any]:
    """What we write into a lock's file."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": start_of_this(), "since": since}
