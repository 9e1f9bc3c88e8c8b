"""Tracking with MLflow that can neither stop nor slow a run.

The process that trains never talks to MLflow. It appends JSON lines to the run's journal, ``<run>/metrics.jsonl``; a
child process (:mod:`difc_ray.tracking.uploader`) reads them and sends them, each once in effect, at the pace the server
allows. What is not sent when the run ends stays in the journal for :func:`sync`. The trials of a sweep only write; one
child sends them all. Only children import mlflow, also to read a run back (:func:`read_run`).

Importing this package imports neither mlflow nor torch.
"""

from __future__ import annotations

from difc_ray.tracking.base import SavesFigure, Status, Tracker, TrackingSummary, save_figure
from difc_ray.tracking.driver import MlflowTracker
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import entries
from difc_ray.tracking.names import figure_path
from difc_ray.tracking.reading import RecordedRun, read_run, spoiled
from difc_ray.tracking.settings import UploadSettings
from difc_ray.tracking.syncing import SyncReport, add_afterwards, sync
from difc_ray.tracking.uris import probe, resolve_uri

__all__ = [
    "MlflowTracker",
    "RecordedRun",
    "SavesFigure",
    "Status",
    "SyncReport",
    "Tracker",
    "TrackingFolder",
    "TrackingSummary",
    "UploadSettings",
    "add_afterwards",
    "entries",
    "figure_path",
    "probe",
    "read_run",
    "resolve_uri",
    "save_figure",
    "spoiled",
    "sync",
]
