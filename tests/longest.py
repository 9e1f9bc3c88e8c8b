"""The files of the suite that take long, for the order in which a parallel run takes them up."""

from __future__ import annotations

LONGEST = (
    "tests/ray/test_sweep_interruptions.py",
    "tests/unit/test_long_tail.py",
    "tests/ray/test_sweeps.py",
    "tests/ray/test_lost_nodes.py",
    "tests/ray/test_signals.py",
    "tests/ray/test_collective.py",
    "tests/ray/test_collective_faults.py",
    "tests/cli/test_demo.py",
    "tests/ray/test_faults.py",
    "tests/ray/test_logs.py",
    "tests/ray/test_profile.py",
    "tests/ray/test_resume.py",
    "tests/ray/test_story.py",
    "tests/ray/test_rules.py",
    "tests/ray/test_parity.py",
    "tests/mlflow/test_outages.py",
    "tests/mlflow/test_compare.py",
    "tests/mlflow/test_family.py",
    "tests/cli/test_commands.py",
    "tests/ray/test_clusters.py",
    "tests/ray/test_reproduction.py",
    "tests/ray/test_two_hosts.py",
    "tests/mlflow/test_round_trip.py",
    "tests/ray/test_jobs.py",
    "tests/ray/test_loopback.py",
    "tests/ray/test_gauges.py",
    "tests/ray/test_autoscale.py",
    "tests/ray/test_stopped_trials.py",
    "tests/cli/test_from_run.py",
)
"""Files that take half a minute and more, roughly from the longest on."""
