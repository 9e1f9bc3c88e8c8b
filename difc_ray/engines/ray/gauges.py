"""What a run is doing, for whoever watches the cluster: gauges on Ray's metrics port, which Prometheus can read.

==========================  ==============================================================
gauge (``ray_difc_ray_…``)  meaning
==========================  ==============================================================
``step``                    steps taken
``loss``                    classification loss of the last step, by ``domain``
``step_ms``                 milliseconds of the last step, by ``part``
``conflicts``               steps so far in which two rows were opposed
``skipped_steps``           steps so far that were left out as not finite
``restarts``                restarts so far, by ``domain``
==========================  ==============================================================

Every gauge has the label ``run``. Setting one takes about two microseconds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ray.util.metrics import Gauge

from difc_ray.step.coordinator import StepRecord

log = logging.getLogger(__name__)

PREFIX = "difc_ray_"


class StepGauges:
    """The gauges of one process; the counts begin anew with every run."""

    def __init__(self) -> None:
        self._gauges = {
            name: Gauge(PREFIX + name, description=text, tag_keys=("run", *keys))
            for name, text, keys in (
                ("step", "Steps taken.", ()),
                ("loss", "Classification loss of the last step.", ("domain",)),
                ("step_ms", "Milliseconds of the last step.", ("part",)),
                ("conflicts", "Steps so far in which two rows were opposed.", ()),
                ("skipped_steps", "Steps so far that were left out as not finite.", ()),
                ("restarts", "Restarts of the domain's worker so far.", ("domain",)),
            )
        }
        self._off = False
        self.begin("")

    def begin(self, run: str) -> None:
        """Another run."""
        self._run, self._conflicts, self._skipped = run, 0, 0

    def set(self, record: StepRecord, restarts: Mapping[str, int]) -> None:
        """Shows a step; what Ray refuses turns the gauges off, with a word in the log: they only watch.

        Args:
            record: what it did.
            restarts: by domain.
        """
        if self._off:
            return
        try:
            self._set(record, restarts)
        except Exception as error:
            self._off = True
            log.warning("the gauges are off from step %d on: %s: %s", record.step, type(error).__name__, error)

    def _set(self, record: StepRecord, restarts: Mapping[str, int]) -> None:
        self._conflicts += record.conflict
        self._skipped += bool(record.skipped)
        self._show("step", record.step + 1)
        self._show("conflicts", self._conflicts)
        self._show("skipped_steps", self._skipped)
        for domain, loss in record.losses.items():
            self._show("loss", loss, domain=domain)
        for part, seconds in record.seconds.items():
            self._show("step_ms", 1e3 * seconds, part=part)
        for domain, count in restarts.items():
            self._show("restarts", count, domain=domain)

    def _show(self, name: str, value: float, **tags: str) -> None:
        labels = {"run": self._run, **tags}
        self._gauges[name].set(float(value), {key: ascii_of(text) for key, text in labels.items()})


def ascii_of(text: str) -> str:
    r"""A label as Ray takes it, which is in ASCII; other characters are escaped.

    >>> ascii_of("café")
    'caf\\xe9'
    """
    return text.encode("ascii", "backslashreplace").decode()
