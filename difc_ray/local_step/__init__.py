"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output."""

from __future__ import annotations

from difc_ray.local_step.head import detached_head, diagonal_row, head_curvature
from difc_ray.local_step.messages import ModelState, Products, Rows, Statistics, Token, domain_buffer
from difc_ray.local_step.parts import family_of, load_domain, loader_of, model_of, objective_of
from difc_ray.local_step.step import LocalStep, inference

__all__ = [
    "LocalStep",
    "ModelState",
    "Products",
    "Rows",
    "Statistics",
    "Token",
    "detached_head",
    "diagonal_row",
    "domain_buffer",
    "family_of",
    "head_curvature",
    "inference",
    "load_domain",
    "loader_of",
    "model_of",
    "objective_of",
]
