"""Runs as Ray jobs: what travels to the cluster, how it is submitted, followed and stopped, and why it is refused."""

from __future__ import annotations

from difc_ray.jobs.address import Address, api_address
from difc_ray.jobs.client import JobInfo, JobRequest, Jobs
from difc_ray.jobs.following import exit_code, follow, stop, why_pending
from difc_ray.jobs.runtime_env import STOP_WINDOW, passed_variables, read_runtime_env, secrets_in
from difc_ray.jobs.shipping import Shipment, shipment_of

__all__ = [
    "STOP_WINDOW",
    "Address",
    "JobInfo",
    "JobRequest",
    "Jobs",
    "Shipment",
    "api_address",
    "exit_code",
    "follow",
    "passed_variables",
    "read_runtime_env",
    "secrets_in",
    "shipment_of",
    "stop",
    "why_pending",
]
