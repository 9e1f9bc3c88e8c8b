"""Sending one journal at its pace: what the uploader's process does with a run."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass

from difc_ray.files import process_alive, write_json
from difc_ray.tracking.child import EXIT_UNAVAILABLE
from difc_ray.tracking.failures import ParentAbsentError, UnavailableError
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import ends_with_finish, survey
from difc_ray.tracking.replay import START_FIELDS, Replayer
from difc_ray.tracking.settings import UploadSettings

_POLL_S = 0.1


@dataclass
class Uploader:
    """Calls the replayer at its pace.

    Args:
        folder: the run's tracking files.
        replayer: what sends.
        settings: pace and patience.
    """

    folder: TrackingFolder
    replayer: Replayer
    settings: UploadSettings
    failures: int = 0
    reason: str = ""
    """Why the last attempt failed, if it did."""
    hopeless: bool = False
    """Whether waiting cannot help, because the run that this one is nested in is not in the store."""
    _failing_since: float | None = None

    def follow(self) -> int:
        """Send what the journal gets until it says that the run has ended and all of it is sent."""
        while True:
            if self.attempt():
                if self.replayer.ended:
                    return 0
                self.wait(self.settings.flush_s, at_the_end=0.0)
            else:
                self.wait(self.backoff_s(), at_the_end=self.settings.backoff_first_s)

    def send_once(self, patience_s: float) -> int:
        """Send what there is; after ``patience_s`` seconds of failures give up."""
        while not self.attempt():
            if self.hopeless or time.time() - self.failing_since >= patience_s:
                return EXIT_UNAVAILABLE
            time.sleep(min(self.backoff_s(), max(0.1, patience_s / 4)))
        self.close_if_abandoned()
        return 0

    def close_if_abandoned(self) -> bool:
        """End a run whose process died without a word as KILLED; False if it has no end because it is still at work."""
        known = survey(self.folder.journal)
        start = known.start
        if start.keys() >= START_FIELDS and not known.finished:
            if process_alive(start["pid"], start["started"], start["host"]):
                return False
            with contextlib.suppress(UnavailableError):
                self.replayer.close_abandoned_run(known.last_ts)
        return True

    @property
    def failing_since(self) -> float:
        """When the store began to fail, in seconds since 1970; 0 when it does not."""
        return self._failing_since or 0.0

    def attempt(self) -> bool:
        """Send what there is now; False if the store was unavailable."""
        try:
            self.replayer.pump()
        except UnavailableError as error:
            self.failures += 1
            self.reason, self.hopeless = str(error), isinstance(error, ParentAbsentError)
            self._failing_since = self._failing_since or time.time()
            write_json(self.folder.status, {"state": "waiting", "since": self._failing_since, "reason": self.reason})
            print(f"{time.strftime('%H:%M:%S')} not sent ({self.failures}): {error}", flush=True)
            if ends_with_finish(self.folder.journal):
                self.replayer.export_models()
            return False
        if self.failures or not self.folder.status.exists():
            write_json(self.folder.status, {"state": "ok"})
        self.failures, self.reason, self.hopeless, self._failing_since = 0, "", False, None
        return True

    def backoff_s(self) -> float:
        """Seconds until the next attempt: doubling up to the bound, with jitter, so that runs do not come in step."""
        bound = self.settings.backoff_first_s * 2.0 ** min(self.failures - 1, 30)
        return min(bound, self.settings.backoff_max_s) * random.uniform(0.5, 1.0)

    def wait(self, seconds: float, at_the_end: float) -> None:
        """Wait, but only ``at_the_end`` seconds once the run has ended, because then somebody waits for us."""
        began, size = time.monotonic(), -1
        while (waited := time.monotonic() - began) < seconds:
            with contextlib.suppress(OSError):
                now = self.folder.journal.stat().st_size
                if now != size and ends_with_finish(self.folder.journal):
                    seconds = min(seconds, at_the_end)
                size = now
            time.sleep(min(_POLL_S, max(0.0, seconds - waited)))
