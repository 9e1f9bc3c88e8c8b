"""One uploader for a whole sweep: first its own journal, then those of its trials, none of which can hold up another.

A process per trial would pay for the import of mlflow each time: seconds of CPU, more than many a trial trains.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from difc_ray.errors import CheckpointError
from difc_ray.files import write_json
from difc_ray.tracking.child import EXIT_UNAVAILABLE
from difc_ray.tracking.failures import reason
from difc_ray.tracking.family import Family, Signature, signature
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import ends_with_finish
from difc_ray.tracking.replay import Replayer
from difc_ray.tracking.sending import Uploader
from difc_ray.tracking.settings import UploadSettings

_LINGER_S = 5.0
_LOOK_S = 0.2
_FAILURES_IN_A_ROW = 2


@dataclass
class Trial:
    """One trial's way to the store.

    Args:
        folder: its tracking files.
        seen: its journal when all of it was last sent.
        uploader: what sends, while this process holds the folder's lock.
    """

    folder: TrackingFolder
    seen: Signature = (-1, 0)
    uploader: Uploader | None = None
    failures: int = 0
    reason: str = ""
    failing_since: float = 0.0
    _failed_at: float = 0.0
    _delay_s: float = 0.0
    _skipped: bool = False

    def __post_init__(self) -> None:
        self._lock = self.folder.lock()

    def due(self, bound_s: float) -> bool:
        """Whether enough time has passed since its last failure, of which ``bound_s`` seconds are always enough."""
        return time.monotonic() - self._failed_at >= min(self._delay_s, bound_s)

    def open(self, uri: str, settings: UploadSettings) -> Uploader | None:
        """Take the folder's lock; None if another process sends this trial now."""
        if self.uploader is None:
            try:
                self._lock.acquire()
            except CheckpointError as error:
                if not self._skipped:
                    print(f"Skipped for now: {error}", flush=True)
                self._skipped = True
                self._failed_at, self._delay_s = time.monotonic(), settings.backoff_first_s
                return None
            self._skipped = False
            self.uploader = Uploader(self.folder, Replayer(self.folder.run_dir, uri), settings)
        return self.uploader

    def close(self) -> None:
        """Give the lock back; what comes later opens the folder again."""
        if self.uploader is not None:
            self._lock.release()
            self.uploader = None

    def send(self, uploader: Uploader) -> bool:
        """Send what there is; whether that worked. Whatever is wrong with this trial stays here."""
        now = signature(self.folder.journal)
        try:
            sent = uploader.attempt()
            why = uploader.reason
        except Exception as error:  # a journal or a folder that nobody foresaw
            sent, why = False, f"{type(error).__name__}: {reason(error)}"
            print(f"{self.folder.run_dir.name}: {why}", flush=True)
            uploader.failures += 1
        if sent:
            self.seen, self.failures, self.reason, self._delay_s = now, 0, "", 0.0
            if ends_with_finish(self.folder.journal):
                self.close()
        else:
            self.failing_since = self.failing_since if self.failures else time.time()
            self.failures, self.reason = self.failures + 1, why
            self._failed_at, self._delay_s = time.monotonic(), uploader.backoff_s()
        return sent


@dataclass
class FamilyUploader:
    """Sends a sweep and its trials.

    Args:
        parent: the uploader of the sweep's own journal, whose lock is held.
        uri: the tracking URI.
    """

    parent: Uploader
    uri: str
    trials: dict[Path, Trial] = field(default_factory=dict)
    _told: bool = False

    @property
    def settings(self) -> UploadSettings:
        """Pace and patience, the same for all."""
        return self.parent.settings

    def follow(self) -> int:
        """Send what the journals get, until the sweep has ended and all of them are sent.

        A trial without an end whose process lives gets a few seconds to write it; one whose process is gone is closed.
        """
        deadline = None
        try:
            while True:
                over = ends_with_finish(self.parent.folder.journal)
                complete = self.round(over)
                if over and complete:
                    deadline = deadline or time.monotonic() + _LINGER_S
                    if self.close_abandoned() or time.monotonic() > deadline:
                        return 0
                    time.sleep(_LOOK_S)
                elif self.parent.failures:
                    self.parent.wait(self.parent.backoff_s(), at_the_end=self.settings.backoff_first_s)
                else:
                    self.parent.wait(self.settings.flush_s, at_the_end=0.0 if complete else _LOOK_S)
        finally:
            self.close()

    def send_once(self, patience_s: float) -> int:
        """Send what there is; after ``patience_s`` seconds in which something is not sent give up."""
        deadline = time.monotonic() + patience_s
        try:
            while not (complete := self.round(over=True)) and time.monotonic() < deadline:
                time.sleep(min(self.settings.backoff_first_s, max(0.1, patience_s / 4)))
            if not self.parent.failures:
                self.parent.close_if_abandoned()
            self.close_abandoned()
        finally:
            self.close()
        return 0 if complete else EXIT_UNAVAILABLE

    def round(self, over: bool) -> bool:
        """Send the sweep's records, then those of every trial whose journal has grown.

        After two failures in a row the others wait for the next round, because the store is probably away; those that
        failed come last in it, so that a trial with trouble of its own holds up none that has not.

        Args:
            over: whether somebody waits for the end, so that failures are repeated soon.

        Returns:
            Whether nothing waits.
        """
        complete = self.parent.attempt()
        if self.parent.replayer.run_id is None:
            return False  # trials are nested in the sweep's run
        in_a_row = 0
        for trial in sorted(self._grown(), key=lambda trial: trial.failures):
            bound_s = self.settings.backoff_first_s if over else self.settings.backoff_max_s
            uploader = trial.open(self.uri, self.settings) if trial.due(bound_s) else None
            if uploader is None or in_a_row >= _FAILURES_IN_A_ROW:
                complete = False
            elif trial.send(uploader):
                in_a_row = 0
            else:
                in_a_row, complete = in_a_row + 1, False
        self._tell()
        return complete

    def close_abandoned(self) -> bool:
        """Close the trials that were sent and whose processes died without a word; False if one is still at work."""
        settled = True
        for trial in self.trials.values():
            if trial.reason or trial.failures or ends_with_finish(trial.folder.journal):
                continue
            uploader = trial.open(self.uri, self.settings)
            settled = uploader is not None and uploader.close_if_abandoned() and settled
        return settled

    def close(self) -> None:
        """Give all locks back."""
        for trial in self.trials.values():
            trial.close()

    def _grown(self) -> list[Trial]:
        """The trials whose journals have changed since they were sent: one look at each file, none into it."""
        for folder in Family(self.parent.folder).trials():
            self.trials.setdefault(folder.run_dir, Trial(folder))
        return [trial for trial in self.trials.values() if signature(trial.folder.journal) != trial.seen]

    def _tell(self) -> None:
        """What keeps a trial waiting is said in the sweep's status, where the driver and ``sync`` look."""
        if self.parent.failures:
            return
        waiting = [trial for trial in self.trials.values() if trial.failures]
        if waiting:
            first = min(waiting, key=lambda trial: trial.failing_since)
            status = {"state": "waiting", "since": first.failing_since, "reason": first.reason}
            write_json(self.parent.folder.status, status)
        elif self._told:
            write_json(self.parent.folder.status, {"state": "ok"})
        self._told = bool(waiting)
