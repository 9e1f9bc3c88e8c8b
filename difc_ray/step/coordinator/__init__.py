"""All domains, one step: statistics -> cotangents, rows -> weights -> next state. No Ray, no input or output."""

from __future__ import annotations

from difc_ray.step.coordinator.parameter_store import CentralStore, ParameterStore, ReplicatedStore, RowSpace
from difc_ray.step.coordinator.protocols import Domains, ReplicatedDomains, Update
from difc_ray.step.coordinator.record import StepRecord
from difc_ray.step.coordinator.rows import merged_buffers, raw_rows
from difc_ray.step.coordinator.state import TrainState
from difc_ray.step.coordinator.step import GlobalStep

__all__ = [
    "CentralStore",
    "Domains",
    "GlobalStep",
    "ParameterStore",
    "ReplicatedDomains",
    "ReplicatedStore",
    "RowSpace",
    "StepRecord",
    "TrainState",
    "Update",
    "merged_buffers",
    "raw_rows",
]
