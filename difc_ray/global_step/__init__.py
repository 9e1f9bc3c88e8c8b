"""All domains, one step: statistics -> cotangents, rows -> weights -> next state. No Ray, no input or output."""

from __future__ import annotations

from difc_ray.global_step.asking import Domains, ReplicatedDomains, Update
from difc_ray.global_step.homes import Central, Home, Replicated, RowSpace
from difc_ray.global_step.record import StepRecord
from difc_ray.global_step.rows import merged_buffers, raw_rows
from difc_ray.global_step.state import TrainState
from difc_ray.global_step.step import GlobalStep

__all__ = [
    "Central",
    "Domains",
    "GlobalStep",
    "Home",
    "Replicated",
    "ReplicatedDomains",
    "RowSpace",
    "StepRecord",
    "TrainState",
    "Update",
    "merged_buffers",
    "raw_rows",
]
