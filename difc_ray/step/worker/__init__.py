"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output."""

from __future__ import annotations

from difc_ray.step.worker.finite import bad_rows
from difc_ray.step.worker.head import detached_head, diagonal_row, head_curvature
from difc_ray.step.worker.merging import merge_rows, merge_statistics
from difc_ray.step.worker.messages import ModelState, Products, Rows, Statistics, Token, domain_buffer, held_rows
from difc_ray.step.worker.step import LocalStep

__all__ = [
    "LocalStep",
    "ModelState",
    "Products",
    "Rows",
    "Statistics",
    "Token",
    "bad_rows",
    "detached_head",
    "diagonal_row",
    "domain_buffer",
    "head_curvature",
    "held_rows",
    "merge_rows",
    "merge_statistics",
]
