"""Sending journals at their pace: that of a run; or of a sweep, first its own, then those of its trials.

A process per trial would pay for the import of mlflow each time: seconds of CPU, more than many a trial trains.
"""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from difc_ray.errors import CheckpointError
from difc_ray.files import Lock, process_alive, write_json
from difc_ray.tracking.child import EXIT_UNAVAILABLE
from difc_ray.tracking.failures import ParentAbsentError, UnavailableError, reason
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import ends_with_finish, survey
from difc_ray.tracking.replay import START_FIELDS, Replayer
from difc_ray.tracking.settings import UploadSettings

_POLL_S = 0.1
_LINGER_S = 5.0
_LOOK_S = 0.2
_FAILURES_IN_A_ROW = 2

Signature = tuple[int, int]
"""Size and time of a file; another one says that it was written to."""


@dataclass
class Channel:
    """One run's way to the store.

    Args:
        folder: the run's files.
        uri: the tracking URI.
        settings: pace and patience.
    """

    folder: TrackingFolder
    uri: str
    settings: UploadSettings
    replayer: Replayer | None = None
    """What sends, while this process holds the folder's lock."""
    seen: Signature = (-1, 0)
    """The journal when all of it was last sent."""
    failures: int = 0
    """How many attempts in a row have failed."""
    reason: str = ""
    """Why the last attempt failed, if it did."""
    hopeless: bool = False
    """Whether waiting cannot help, because the run that this one is nested in is not in the store."""
    failing_since: float = 0.0
    """When the attempts began to fail, in seconds since 1970."""
    _lock: Lock | None = None
    _failed_at: float = 0.0
    _delay_s: float = 0.0

    def open(self, wait_s: float = 0.0) -> Replayer:
        """What sends; the folder's lock is taken first.

        Args:
            wait_s: how long to wait for its holder to end, in seconds.

        Raises:
            CheckpointError: another process sends this run.
        """
        if self.replayer is None:
            lock = self.folder.lock()
            lock.acquire(wait_s)
            self._lock, self.replayer = lock, Replayer(self.folder.run_dir, self.uri)
        return self.replayer

    def close(self) -> None:
        """Give the lock back; what comes later opens the folder again."""
        if self._lock is not None:
            self._lock.release()
        self._lock = self.replayer = None

    @property
    def grown(self) -> bool:
        """Whether there is something to send: one look at the file, none into it."""
        return signature(self.folder.journal) != self.seen

    def due(self, bound_s: float) -> bool:
        """Whether enough time has passed since the last failure, of which ``bound_s`` seconds are always enough."""
        return time.monotonic() - self._failed_at >= min(self._delay_s, bound_s)

    def attempt(self) -> bool:
        """Send what there is now; False if that failed, whatever was wrong."""
        now = signature(self.folder.journal)
        try:
            self.open().pump()
        except Exception as error:  # the store is away, another process sends it, or what nobody foresaw
            self._failed(error)
            return False
        if self.failures or not self.folder.status.exists():
            write_json(self.folder.status, {"state": "ok"})
        self.seen, self.failures, self.reason, self.hopeless, self._delay_s = now, 0, "", False, 0.0
        return True

    def _failed(self, error: Exception) -> None:
        foreseen = isinstance(error, UnavailableError | CheckpointError)
        self.failing_since = self.failing_since if self.failures else time.time()
        self.failures += 1
        self._failed_at, self._delay_s = time.monotonic(), self.backoff_s()
        self.reason = str(error) if foreseen else f"{type(error).__name__}: {reason(error)}"
        self.hopeless = isinstance(error, ParentAbsentError)
        print(f"{time.strftime('%H:%M:%S')} {self.folder.run_dir.name} not sent: {self.reason}", flush=True)
        if self.replayer is not None:
            self.tell("waiting", since=self.failing_since, reason=self.reason)
            if ends_with_finish(self.folder.journal):
                self.replayer.export_models()

    def tell(self, state: str, **content: object) -> None:
        """Say in the folder how it stands, where the driver and ``sync`` look."""
        write_json(self.folder.status, {"state": state, **content})

    def close_if_abandoned(self) -> bool:
        """End a run whose process died without a word as KILLED; False if it has no end because it is still at work."""
        if self.failures or ends_with_finish(self.folder.journal):
            return True
        known = survey(self.folder.journal)
        if known.start.keys() >= START_FIELDS and not known.finished:
            if process_alive(known.start["pid"], known.start["started"], known.start["host"]):
                return False
            with contextlib.suppress(UnavailableError, CheckpointError):
                self.open().close_abandoned_run(known.last_time)
        return True

    def backoff_s(self) -> float:
        """Seconds until the next attempt: doubling up to the bound, with jitter, so that runs do not come in step."""
        bound = self.settings.backoff_first_s * 2.0 ** min(self.failures - 1, 30)
        return min(bound, self.settings.backoff_max_s) * random.uniform(0.5, 1.0)


@dataclass
class Uploader:
    """Sends a run; or a sweep and its trials, none of which can hold up another.

    Args:
        run_dir: the folder of the run, or of the sweep.
        uri: the tracking URI.
        settings: pace and patience.
    """

    run_dir: Path
    uri: str
    settings: UploadSettings
    own: Channel = field(init=False)
    trials: dict[Path, Channel] = field(default_factory=dict)
    _told: bool = False

    def __post_init__(self) -> None:
        self.own = Channel(TrackingFolder(self.run_dir), self.uri, self.settings)

    def follow(self) -> int:
        """Send what the journals get, until the run or the sweep has ended and all of them are sent.

        A trial without an end whose process lives gets a few seconds to write it; one whose process is gone is closed.
        """
        deadline = None
        while True:
            over = ends_with_finish(self.own.folder.journal)
            complete = self.round(over)
            if over and complete:
                deadline = deadline or time.monotonic() + _LINGER_S
                if self.close_abandoned() or time.monotonic() > deadline:
                    return 0
                time.sleep(_LOOK_S)
            elif self.own.failures:
                self.wait(self.own.backoff_s(), at_the_end=self.settings.backoff_first_s)
            else:
                self.wait(self.settings.flush_s, at_the_end=0.0 if complete else _LOOK_S)

    def send_once(self, patience_s: float) -> int:
        """Send what there is; after ``patience_s`` seconds in which nothing was sent give up."""
        deadline, sent = time.monotonic() + patience_s, self._sent()
        while not (complete := self.round(over=True)) and not self.own.hopeless:
            before, sent = sent, self._sent()
            if sent != before:
                deadline = time.monotonic() + patience_s
            if time.monotonic() >= deadline:
                break
            time.sleep(min(self.settings.backoff_first_s, max(0.1, patience_s / 4)))
        self.own.close_if_abandoned()
        self.close_abandoned()
        return 0 if complete else EXIT_UNAVAILABLE

    def round(self, over: bool) -> bool:
        """Send the own records, then those of every trial whose journal has grown.

        After two failures in a row the others wait for the next round, because the store is probably away; those that
        failed come last in it, so that a trial with trouble of its own holds up none that has not.

        Args:
            over: whether somebody waits for the end, so that failures are repeated soon.

        Returns:
            Whether nothing waits.
        """
        complete = self.own.attempt()
        for folder in self.own.folder.trials():
            self.trials.setdefault(folder.run_dir, Channel(folder, self.uri, self.settings))
        grown = sorted((trial for trial in self.trials.values() if trial.grown), key=lambda trial: trial.failures)
        if grown and (self.own.replayer is None or self.own.replayer.run_id is None):
            return False  # trials are nested in the sweep's run
        bound_s = self.settings.backoff_first_s if over else self.settings.backoff_max_s
        in_a_row = 0
        for trial in grown:
            if in_a_row >= _FAILURES_IN_A_ROW or not trial.due(bound_s):
                complete = False
            elif trial.attempt():
                in_a_row = 0
                if ends_with_finish(trial.folder.journal):
                    trial.close()
            else:
                complete = False
                in_a_row += trial.replayer is not None  # not if another process sends it
        self._tell()
        return complete

    def close_abandoned(self) -> bool:
        """Close the trials whose processes died without a word; False if one is still at work."""
        settled = [trial.close_if_abandoned() for trial in self.trials.values()]
        return all(settled)

    def wait(self, seconds: float, at_the_end: float) -> None:
        """Wait, but only ``at_the_end`` seconds once the run has ended, because then somebody waits for us."""
        began, last = time.monotonic(), (-1, -1)
        while (waited := time.monotonic() - began) < seconds:
            now = signature(self.own.folder.journal)
            if now != last and ends_with_finish(self.own.folder.journal):
                seconds = min(seconds, at_the_end)
            last = now
            time.sleep(min(_POLL_S, max(0.0, seconds - waited)))

    def close(self) -> None:
        """Give all locks back."""
        for channel in (self.own, *self.trials.values()):
            channel.close()

    def _sent(self) -> int:
        """Changes when something was sent."""
        return sum(each.replayer.offset for each in (self.own, *self.trials.values()) if each.replayer)

    def _tell(self) -> None:
        """What keeps a trial waiting is said in the sweep's status, where the driver and ``sync`` look."""
        if self.own.failures:
            return
        waiting = [trial for trial in self.trials.values() if trial.failures]
        if waiting:
            first = min(waiting, key=lambda trial: trial.failing_since)
            self.own.tell("waiting", since=first.failing_since, reason=first.reason)
        elif self._told:
            self.own.tell("ok")
        self._told = bool(waiting)


def signature(path: Path) -> Signature:
    """Size in bytes and time in ns of a file; (-1, 0) of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return (-1, 0)
    return (found.st_size, found.st_mtime_ns)
