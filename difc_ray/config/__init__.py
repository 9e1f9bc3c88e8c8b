"""The configuration of a run: the tree, strict loading with every problem at once, checks, and its text forms."""

from __future__ import annotations

from difc_ray.config.bundles import Wish, wishes
from difc_ray.config.checks import cautions, check, known_names
from difc_ray.config.keys import (
    AlignmentConfig,
    AnnealConfig,
    CheckpointConfig,
    ClusterConfig,
    Config,
    HarmonizeConfig,
    OptimizerConfig,
    TrackingConfig,
    TrialConfig,
)
from difc_ray.config.load import import_plugins, load_config
from difc_ray.config.preflight import check_data, check_paths
from difc_ray.config.problems import CheckpointProblems, ConfigProblems, DataProblems, Problem
from difc_ray.config.render import RESUMABLE, SYMBOLS, differences, flat, to_yaml
from difc_ray.config.resolve import (
    batch_norm_policy,
    domain_weights,
    has_penalty,
    metric_kind,
    objective_name,
    objective_settings,
    own_options,
    resolve,
    rows_per_domain,
    rule_options,
    run_folder,
)
from difc_ray.config.schema import documentation

__all__ = [
    "RESUMABLE",
    "SYMBOLS",
    "AlignmentConfig",
    "AnnealConfig",
    "CheckpointConfig",
    "CheckpointProblems",
    "ClusterConfig",
    "Config",
    "ConfigProblems",
    "DataProblems",
    "HarmonizeConfig",
    "OptimizerConfig",
    "Problem",
    "TrackingConfig",
    "TrialConfig",
    "Wish",
    "batch_norm_policy",
    "cautions",
    "check",
    "check_data",
    "check_paths",
    "differences",
    "documentation",
    "domain_weights",
    "flat",
    "has_penalty",
    "import_plugins",
    "known_names",
    "load_config",
    "metric_kind",
    "objective_name",
    "objective_settings",
    "own_options",
    "resolve",
    "rows_per_domain",
    "rule_options",
    "run_folder",
    "to_yaml",
    "wishes",
]
