"""Who is slow: compared with a count by hand, on made-up seconds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from difc_ray.engines.ray.stragglers import WINDOW, Stragglers


@dataclass
class Reply:
    compute_s: float
    loading_s: float = 0.0


@dataclass
class Shared:
    rows: Reply


def steps(watch: Stragglers, count: int, *seconds: float, loading: float = 0.0) -> list[dict[int, str]]:
    """So many steps in which the workers answer twice, and all of the waiting is the first worker's."""
    found = []
    for _ in range(count):
        watch.begin()
        watch.add({index: Reply(s / 2, loading if index == 0 else 0.0) for index, s in enumerate(seconds)})
        watch.add({index: Shared(Reply(s / 2)) for index, s in enumerate(seconds)})
        found.append(watch.end())
    return found


def test_a_slow_worker_is_named_once_after_the_window() -> None:
    watch = Stragglers(["photo", "art", "sketch", "cartoon"])
    found = steps(watch, 60, 0.41, 0.05, 0.10, 0.15, loading=0.3772)
    assert [number for number, told in enumerate(found) if told] == [WINDOW - 1]
    assert found[WINDOW - 1] == {
        0: "domain `photo` is 4.1x slower than the others over 20 steps (410 ms against 100 ms a step, 92% of it "
        "waiting for data); all wait for it"
    }


def test_a_worker_that_catches_up_is_named_again_when_it_falls_back() -> None:
    watch = Stragglers(["a", "b", "c"])
    assert sum(bool(told) for told in steps(watch, 40, 0.1, 0.5, 0.1)) == 1
    assert not any(steps(watch, 40, 0.1, 0.1, 0.1))
    assert sum(bool(told) for told in steps(watch, 40, 0.1, 0.5, 0.1)) == 1


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ((0.1, 0.299), []),
        ((0.1, 0.301), [1]),
        ((0.001, 0.009), []),  # 9 times as long, and nobody notices
        ((0.1, 0.5, 0.5), []),  # most are so
        ((0.1, 0.1, 0.5, 0.6), [2, 3]),
        ((0.5,), []),
    ],
)
def test_where_slow_begins(seconds: tuple[float, ...], slow: list[int]) -> None:
    watch = Stragglers([str(number) for number in range(len(seconds))])
    assert sorted(steps(watch, WINDOW, *seconds)[-1]) == slow


def test_slow_by_accident_does_not_count() -> None:
    """A first step of a minute, and a repeated one, are no habit."""
    watch = Stragglers(["a", "b"])
    steps(watch, 1, 60.0, 0.1)
    watch.begin()
    watch.add({0: Reply(60.0), 1: Reply(60.0)})  # an attempt that is repeated
    assert not any(steps(watch, 3 * WINDOW, 0.1, 0.1))
    assert watch._seconds[0][-1] == pytest.approx(0.1)
