"""Sends a journal to an MLflow store: in order, from the cursor, each record once in effect.

The cursor moves after a success, so a crash repeats at most the last request. Repetition has no effect because
everything that is sent has an identity of its own: a metric is (key, step, original time, value), the run is found by
the key in its tags, a model by its id in ``run.json``, its version in the registry by that id, and an artifact by its
path.

* A point (metric, step) of a step or an evaluation is sent once: a resumed run takes some steps again, and computes the
  same values. Its changed parameters become tags ``resume.<n>.<name>``.
* A value that is not finite is not sent (MLflow would store inf as 1.8e308); the tag ``difc_ray.nonfinite_metrics``
  says at the end how many there were and where they began.
* A name that MLflow does not allow is changed as :func:`~difc_ray.tracking.names.clean_key` does; the tag
  ``difc_ray.renamed.<new name>`` keeps the old one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from difc_ray.files import inside, read_json, write_json
from difc_ray.tracking.failures import RefusedError, UnavailableError, judge, reason
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import Record, read_records
from difc_ray.tracking.model_upload import export_model, upload_model
from difc_ray.tracking.names import MAX_TAG, clean_key, clean_tags, clean_text
from difc_ray.tracking.points import MEASURED, points
from difc_ray.tracking.runs import ATTEMPT_TAG, KEY_TAG, PARENT_TAG, RunStore
from difc_ray.tracking.uris import without_credentials

START_FIELDS = frozenset({"run_name", "experiment", "params", "tags", "key", "attempt", "pid", "started", "host"})
"""What a ``start`` record must have."""
MAX_METRICS = 1000
MAX_PARAMS = 100
_CHUNK_BYTES = 4 << 20
_ATTEMPTS_AT_THE_UNKNOWN = 5

_Pool = list[tuple[Record, dict[str, float]]]
"""Records that are sent together, each with its points."""


class Replayer:
    """The journal of one run on its way to one store.

    Args:
        run_dir: the run's folder.
        uri: the tracking URI.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.folder = TrackingFolder(run_dir)
        self.uri = uri
        self.store = without_credentials(uri)
        self._runs = RunStore(self.folder, uri)
        self._names: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        self._failures: dict[int, int] = {}
        cursor = read_json(self.folder.cursor).get(self.store, {})
        if not self._runs.run_id:
            cursor = {}  # run.json is gone: begin again, the run is found by its key
        self.seq, self.offset = int(cursor.get("seq", 0)), int(cursor.get("offset", 0))
        self._steps: dict[str, int] = cursor.get("steps", {})
        """Per metric of steps and evaluations, the last step that was sent."""
        self._nonfinite: dict[str, tuple[int, int]] = cursor.get("nonfinite", {})
        """Per metric, how many values were not finite, and the step of the first of them."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once it exists."""
        return self._runs.run_id

    def pump(self) -> None:
        """Send all records that the journal has now.

        Raises:
            UnavailableError: the store did not take them; those before the failure are done with.
        """
        offset = -1
        while offset != self.offset:
            offset, pool, size = self.offset, _Pool(), 0
            for record in read_records(self.folder.journal, self.offset, _CHUNK_BYTES):
                values = self._new_points(record)
                if values is None or size + len(values) > MAX_METRICS:
                    self._send_metrics(pool)
                    pool, size = _Pool(), 0
                if values is None:
                    self._send_other(record)
                else:
                    pool.append((record, values))
                    size += len(values)
            self._send_metrics(pool)

    def _new_points(self, record: Record) -> dict[str, float] | None:
        """What is to be sent of a record that holds metrics, by the names that MLflow allows; None of another one."""
        if record.kind not in MEASURED or not record.seq:
            return None
        try:
            found = {self._names.get(name) or self._learn(name): value for name, value in points(record).items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        if record.kind == "metrics":
            return found
        return {name: value for name, value in found.items() if record.data["step"] > self._steps.get(name, -1)}

    def export_models(self) -> None:
        """Save the models that wait behind an unreachable store in MLflow's format, so that they exist locally."""
        for record in read_records(self.folder.journal, self.offset):
            if record.kind == "model":
                try:
                    export_model(self.folder, record)
                except Exception as error:
                    print(f"The model of step {record.data.get('step')} cannot be saved: {reason(error)}", flush=True)

    def close_abandoned_run(self, last_time: int) -> None:
        """Give a run whose driver died without a word an end: KILLED, at its last record."""
        if self._runs.run_id:
            self._end("KILLED", last_time, "The process that trained ended without a word.")

    def _send_metrics(self, pool: _Pool) -> None:
        """Send the points of some records; if they are refused, find the record that is."""
        if not pool:
            return
        try:
            self._need_run()
            self._log_pairs(pool[0][0], "tags", clean_tags(self._renamed))
            self._renamed.clear()
            for batch in _batches(_metrics(pool), MAX_METRICS):
                self._guarded(lambda batch=batch: self._runs.log(metrics=batch))
        except RefusedError as refusal:
            if len(pool) > 1:
                middle = len(pool) // 2
                self._send_metrics(pool[:middle])
                self._send_metrics(pool[middle:])
                return
            self._refuse(pool[0][0], refusal)
        self._advance(pool)

    def _learn(self, name: str) -> str:
        """The key for a new name; that it had to be changed is to be noted in a tag."""
        key = self._names[name] = clean_key(name)
        if key != name:
            self._renamed[f"difc_ray.renamed.{key}"] = name
        return key

    def _send_other(self, record: Record) -> None:
        actions = {
            "start": self._start,
            "tags": lambda record: self._log_pairs(record, "tags", record.data["tags"]),
            "artifact": self._artifact,
            "model": self._model,
            "rewound": lambda record: None,
            "finish": self._finish,
        }
        if not record.seq and record.kind != "damaged":  # of a version that numbered none, and had sent it otherwise
            self._advance([(record, {})])
            return
        try:
            if record.kind not in actions:
                raise RefusedError(f"A journal record must have a known kind and its fields. Found `{record.kind}`.")
            if record.kind != "start":
                self._need_run()
            actions[record.kind](record)
        except RefusedError as refusal:
            self._refuse(record, refusal)
        except (KeyError, TypeError, AttributeError) as error:  # not from a request, which is guarded
            self._refuse(record, RefusedError(f"A journal record must have all its fields. Found {error!r}."))
        self._advance([(record, {})])

    def _start(self, record: Record) -> None:
        """Create or find the run, and tell it its parameters; those that a resumed run changed become tags."""
        data = record.data
        if missing := sorted(START_FIELDS - data.keys()):
            raise RefusedError(f"The first record of a run must have all its fields. Found none called {missing}.")
        self._guarded(lambda: self._runs.open(data, record.time), record, prerequisite=True)
        known = self._guarded(self._runs.params, record, prerequisite=True)
        params = {key: value for key, value in data["params"].items() if key not in known}
        changed = {key: value for key, value in data["params"].items() if known.get(key, value) != value}
        self._log_pairs(record, "params", params)
        tags = {f"resume.{data['attempt']}.{key}"[:250]: value for key, value in changed.items()}
        tags |= {ATTEMPT_TAG: str(data["attempt"])} if data["attempt"] else {}
        tags |= {PARENT_TAG: self._runs.parent_id} if self._runs.parent_id else {}
        self._log_pairs(record, "tags", {**data["tags"], **tags, KEY_TAG: data["key"]})

    def _need_run(self) -> None:
        """What follows a first record that was refused has nowhere to go."""
        if self._runs.run_id is None:
            raise RefusedError("The record that begins the run is damaged or missing.")

    def _log_pairs(self, record: Record, field: str, pairs: Mapping[str, str]) -> None:
        """Params or tags in batches; a refused batch is repeated one by one, so that it costs only the bad ones."""
        for batch in _batches(list(pairs.items()), MAX_PARAMS):
            try:
                self._guarded(lambda batch=batch: self._runs.log(**{field: batch}), record)
            except RefusedError:
                for pair in batch:
                    try:
                        self._guarded(lambda pair=pair: self._runs.log(**{field: [pair]}), record)
                    except RefusedError as refusal:
                        self._refuse(record, RefusedError(f"{field} `{pair[0]}`: {refusal}"))

    def _artifact(self, record: Record) -> None:
        try:
            path = inside(self.folder.run_dir, record.data["path"])
        except FileNotFoundError as error:
            raise RefusedError(f"The file `{record.data['path']}` is gone.") from error
        except OSError as error:
            raise RefusedError(f"Only files inside the run's folder are sent. Found {error.strerror}.") from error
        self._guarded(lambda: self._runs.log_artifact(path, record.data["folder"]), record)

    def _model(self, record: Record) -> None:
        try:
            export_model(self.folder, record)
        except Exception as error:
            raise RefusedError(f"The model cannot be saved in MLflow's format: {reason(error)}") from error
        self._guarded(lambda: upload_model(self._runs, self.folder, record), record)

    def _finish(self, record: Record) -> None:
        self._end(record.data["status"], record.time, record.data["error"], record)

    def _end(self, status: str, time: int, error: str | None, record: Record | None = None) -> None:
        """Close the run, with the tag that counts values which were not finite."""
        if self._nonfinite:
            lines = (f"{name}: {number} (first at step {step})" for name, (number, step) in self._nonfinite.items())
            tag = ("difc_ray.nonfinite_metrics", clean_text("\n".join(lines), MAX_TAG))
            self._guarded(lambda: self._runs.log(tags=[tag]), record)
        self._guarded(lambda: self._runs.end(self.run_id or "", status, time, error), record)

    def _guarded(self, request: Any, record: Record | None = None, prerequisite: bool = False) -> Any:
        """Make a request; what it raises becomes :class:`UnavailableError` or :class:`RefusedError`.

        Args:
            request: the call.
            record: what it is for; an exception that nobody knows is taken for a refusal after five attempts.
            prerequisite: without it nothing else can be sent, so it is never given up.
        """
        try:
            return request()
        except Exception as error:
            verdict = judge(error, self.uri)
            if verdict is None:
                seq = record.seq if record else -1
                self._failures[seq] = self._failures.get(seq, 0) + 1
                final = self._failures[seq] >= _ATTEMPTS_AT_THE_UNKNOWN
                text = f"{type(error).__name__}: {reason(error)}"
                verdict = RefusedError(text) if final else UnavailableError(text)
            if prerequisite and isinstance(verdict, RefusedError):
                verdict = UnavailableError(str(verdict))
            raise verdict from error

    def _refuse(self, record: Record, refusal: RefusedError) -> None:
        entry = {"seq": record.seq, "kind": record.kind, "reason": str(refusal), "record": record.data}
        with self.folder.refused.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _advance(self, pool: _Pool) -> None:
        """These records are done with."""
        for record, values in pool:
            self.seq, self.offset = max(self.seq, record.seq), record.end
            for name, value in values.items():
                step = int(record.data["step"])
                if record.kind != "metrics":
                    self._steps[name] = step
                if not math.isfinite(value):
                    number, first = self._nonfinite.get(name, (0, step))
                    self._nonfinite[name] = (number + 1, first)
        cursor = {"seq": self.seq, "offset": self.offset, "steps": self._steps, "nonfinite": self._nonfinite}
        write_json(self.folder.cursor, read_json(self.folder.cursor) | {self.store: cursor})


def _metrics(pool: _Pool) -> list[tuple[str, float, int, int]]:
    """(key, value, time in ms, step) of all finite values."""
    return [
        (key, value, record.time, int(record.data["step"]))
        for record, values in pool
        for key, value in values.items()
        if math.isfinite(value)
    ]


def _batches(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
