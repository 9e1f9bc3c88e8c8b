"""The suite itself: the order of its files in a parallel run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.longest import LONGEST

ROOT = Path(__file__).parents[2]


def test_the_longest_files_are_there_and_come_first(request: pytest.FixtureRequest) -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    files = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in request.session.items))
    long = [name for name in LONGEST if name in files]
    assert files[: len(long)] == long
