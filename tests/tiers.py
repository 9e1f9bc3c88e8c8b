"""The tiers of the suite: `make test` runs the first one, `make test-all` the rest as well.

The first tier has every test that stays in its own process and is quick, and one real proof of every promise: the tests
below, which start Ray, servers, browsers and command lines. A test is in the first tier or in the rest, never in both.
"""

from __future__ import annotations

from collections.abc import Iterable

FIXTURES = {"ray_session": "ray", "mlflow_server": "mlflow", "trained_once": "process"}
"""What a test gets from a fixture of the session, and the mark that it has because of that."""

OUTSIDE = ("ray", "mlflow", "process")
"""Marks of tests that start other processes; `make test-fast` runs none of them."""

PROMISES = {
    "a run on Ray ends in the bits of a single process": (
        "tests/ray/test_parity.py::test_every_penalty_and_every_rule",
        "tests/ray/test_parity.py::test_evaluation_is_the_same",
        "tests/ray/test_parity.py::test_negative_control",
    ),
    "workers that are killed lose no step and change no bit": (
        "tests/ray/test_faults.py::test_three_workers_killed_in_three_places",
    ),
    "a run that was stopped by a signal and resumed is one that went straight through": (
        "tests/ray/test_signals.py::test_sigterm_in_the_middle_of_a_step",
        "tests/ray/test_resume.py",
    ),
    "a trial of a sweep is the run that it stands for": (
        "tests/ray/test_sweeps.py::test_actors_go_on_to_the_next_trial_and_to_the_same_weights",
    ),
    "an MLflow server that stops, freezes or fails costs no record": (
        "tests/mlflow/test_outages.py::test_a_server_that_stops_and_freezes_in_mid_run",
        "tests/mlflow/test_round_trip.py::test_everything_round_trips_though_each_request_fails_twice",
    ),
    "the command line does what it prints": ("tests/cli/test_commands.py",),
    "the page of a comparison is whole in a browser": (
        "tests/mlflow/test_compare.py::test_the_command_prints_the_methods_the_picks_and_the_page",
        "tests/mlflow/test_compare.py::test_the_page_in_a_browser",
    ),
}
"""What the README promises beyond one process, and the tests of the first tier that prove it."""

_CORE = frozenset(name for names in PROMISES.values() for name in names)


def is_core(nodeid: str, marks: Iterable[str]) -> bool:
    """Whether a test is in the first tier.

    Args:
        nodeid: its name for pytest.
        marks: names of its marks.

    >>> is_core("tests/unit/test_x.py::test_y", []), is_core("tests/unit/test_x.py::test_y", ["slow"])
    (True, False)
    >>> is_core("tests/ray/test_parity.py::test_negative_control", ["ray"])
    True
    """
    test = nodeid.partition("[")[0]
    return not {*OUTSIDE, "slow"}.intersection(marks) or bool({test, test.partition("::")[0]} & _CORE)
