"""Sends a journal to an MLflow store: in order, from the cursor, each record once in effect.

The cursor moves after a success, so a crash repeats at most the last request. Repetition has no effect because
everything that is sent has an identity of its own: a metric is (key, step, original time, value), the run is found by
the key in its tags, a model by its id in ``run.json``, its version in the registry by that id, and an artifact by its
path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from difc_ray.files import read_json, write_json
from difc_ray.tracking.failures import RefusedError, UnavailableError, judge, reason
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import Record, read_records
from difc_ray.tracking.model_upload import export_model, upload_model
from difc_ray.tracking.runs import ATTEMPT_TAG, KEY_TAG, PARENT_TAG, RunStore
from difc_ray.tracking.uris import without_credentials

START_FIELDS = frozenset({"run_name", "experiment", "params", "tags", "key", "attempt", "pid", "started", "host"})
"""What a ``start`` record must have."""
MAX_METRICS = 1000
MAX_PARAMS = 100
_CHUNK_BYTES = 4 << 20
_ATTEMPTS_AT_THE_UNKNOWN = 5


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
        position = read_json(self.folder.cursor).get(self.store, {})
        self.seq, self.offset = int(position.get("seq", 0)), int(position.get("offset", 0))
        self.ended = False
        """Whether the last record sent was the end of the run."""
        self._runs = RunStore(self.folder, uri)
        self._key = ""
        self._failures: dict[int, int] = {}
        if self.offset and not self._runs.run_id:
            self.seq = self.offset = 0  # run.json is gone: begin again, the run is found by its key

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once it exists."""
        return self._runs.run_id

    def pump(self) -> int:
        """Send all records that the journal has now.

        Returns:
            How many were sent.

        Raises:
            UnavailableError: the store did not take them; those before the failure are done with.
        """
        sent = 0
        while self.folder.journal.exists():
            pool: list[Record] = []
            size = count = 0
            for record in read_records(self.folder.journal, self.offset, _CHUNK_BYTES):
                count += 1
                if record.kind == "metrics":
                    if size + len(record.data["values"]) > MAX_METRICS:
                        self._send_metrics(pool)
                        pool, size = [], 0
                    pool.append(record)
                    size += len(record.data["values"])
                else:
                    self._send_metrics(pool)
                    pool, size = [], 0
                    self._send_other(record)
            self._send_metrics(pool)
            sent += count
            if not count:
                break
        return sent

    def export_models(self) -> None:
        """Save the models that wait behind an unreachable store in MLflow's format, so that they exist locally."""
        if not self.folder.journal.exists():
            return
        for record in read_records(self.folder.journal, self.offset):
            if record.kind == "model":
                try:
                    export_model(self.folder, record)
                except Exception as error:
                    print(f"The model of step {record.data.get('step')} cannot be saved: {reason(error)}", flush=True)

    def close_abandoned_run(self, last_ts: int) -> None:
        """Give a run whose driver died without a word an end: KILLED, at its last record."""
        if self._runs.run_id:
            self._guarded(
                lambda: self._runs.end(
                    self._runs.run_id or "", "KILLED", last_ts, "The process that trained ended without a word."
                )
            )

    def _send_metrics(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            self._need_run()
            for batch in _batches(_metrics(records), MAX_METRICS):
                self._guarded(lambda batch=batch: self._runs.log(metrics=batch))
        except RefusedError as refusal:
            if len(records) == 1:
                self._refuse(records[0], refusal)
            else:  # find the one that is refused
                middle = len(records) // 2
                self._send_metrics(records[:middle])
                self._send_metrics(records[middle:])
                return
        self._advance(records[-1])

    def _send_other(self, record: Record) -> None:
        actions = {
            "start": self._start,
            "tags": lambda record: self._log_pairs(record, "tags", record.data["tags"]),
            "artifact": self._artifact,
            "model": self._model,
            "finish": self._finish,
        }
        try:
            if record.kind not in actions:
                raise RefusedError(f"A journal record must have a known kind. Found `{record.kind}`.")
            if record.kind != "start":
                self._need_run()
            actions[record.kind](record)
        except RefusedError as refusal:
            self._refuse(record, refusal)
        except (KeyError, TypeError, AttributeError) as error:  # not from a request, which is guarded
            self._refuse(record, RefusedError(f"A journal record must have all its fields. Found {error!r}."))
        self._advance(record)

    def _start(self, record: Record) -> None:
        """Create or find the run, and tell it its parameters; those that a resumed run changed become tags."""
        data = record.data
        if missing := sorted(START_FIELDS - data.keys()):
            raise RefusedError(f"The first record of a run must have all its fields. Found none called {missing}.")
        self._guarded(lambda: self._runs.open(data, record.ts), record, prerequisite=True)
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
        path = self.folder.run_dir / record.data["path"]
        if not path.exists():
            raise RefusedError(f"The file `{record.data['path']}` is gone.")
        self._guarded(lambda: self._runs.log_artifact(path, record.data["folder"]), record)

    def _model(self, record: Record) -> None:
        try:
            export_model(self.folder, record)
        except Exception as error:
            raise RefusedError(f"The model cannot be saved in MLflow's format: {reason(error)}") from error
        self._guarded(lambda: upload_model(self._runs, self.folder, record), record)

    def _finish(self, record: Record) -> None:
        data = record.data
        self._guarded(lambda: self._runs.end(self.run_id or "", data["status"], record.ts, data["error"]), record)

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

    def _advance(self, record: Record) -> None:
        self.seq, self.offset = max(self.seq, record.seq), record.end
        self.ended = record.kind == "finish"
        everywhere = read_json(self.folder.cursor)
        everywhere[self.store] = {"seq": self.seq, "offset": self.offset}
        write_json(self.folder.cursor, everywhere)


def _metrics(records: Iterable[Record]) -> list[tuple[str, float, int, int]]:
    """(key, value, time in ms, step) of all finite values; the others are counted by the driver, in a tag."""
    return [
        (key, float(value), record.ts, int(record.data["step"]))
        for record in records
        for key, value in record.data["values"].items()
        if not isinstance(value, str) and math.isfinite(value)
    ]


def _batches(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
