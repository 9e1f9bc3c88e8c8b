"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output."""

from __future__ import annotations

from difc_ray.step.factory import family_of, load_domain, loader_of, model_of, objective_of, parts_of
from difc_ray.step.worker.finite import bad_rows
from difc_ray.step.worker.head import detached_head, diagonal_row, head_curvature
from difc_ray.step.worker.merging import merge_rows, merge_statistics, part_of
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
    "family_of",
    "head_curvature",
    "held_rows",
    "load_domain",
    "loader_of",
    "merge_rows",
    "merge_statistics",
    "model_of",
    "objective_of",
    "part_of",
    "parts_of",
]
