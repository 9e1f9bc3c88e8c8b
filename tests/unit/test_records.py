"""`metrics.jsonl`: what figures and the summary get of it, after a resume too, and that a long run stays small."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path

from difc_ray.runs.metrics_log import MetricsLog
from difc_ray.step.coordinator import StepRecord
from difc_ray.tracking import Tracker


def record(step: int, *, skipped: str = "", rows: bool = True) -> StepRecord:
    """A step of three rows; from step to step their cosines change sign."""
    cosine = (-1) ** step * (step + 1) / 100
    return StepRecord(
        step=step,
        losses={"a": 1.0 / (step + 1), "b": 2.0 + step},
        values={"cos_mean": 0.5 + step / 100, "lr": 0.1} | ({"min_cosine_after": cosine + 0.2} if step % 3 else {}),
        row_cosines=(0.9, cosine, 0.8) if rows else (),
        margins_after=(0.3, 0.1 + step / 1000),
        skipped=skipped,
    )


def new_log(run_dir: Path) -> MetricsLog:
    return MetricsLog(Tracker(run_dir, None, "e"), 0, 0)


def filled(run_dir: Path, steps: int) -> MetricsLog:
    """The log of so many steps, the third of which is skipped, with an evaluation after every fourth."""
    log = new_log(run_dir)
    for step in range(steps):
        log.step(record(step, skipped="nan" if step == 2 else ""))
        if step % 4 == 3:
            log.evaluation(step + 1, {"val/loss/a": 0.5}, [[step, 1], [0, 2]])
    return log


def test_figures_have_every_step_that_was_taken(tmp_path: Path) -> None:
    log = filled(tmp_path, 8)
    taken = [0, 1, 3, 4, 5, 6, 7]
    cosines = [min(record(step).row_cosines) for step in taken]
    steps, losses, before, after = log.curves()
    assert steps == [step + 1 for step in taken]
    assert losses == {"a": [1.0 / (step + 1) for step in taken], "b": [2.0 + step for step in taken]}
    assert before == cosines
    assert after == [c + 0.2 if step % 3 else c for step, c in zip(taken, cosines, strict=True)]
    shared, series = log.conflicts()
    assert shared == steps
    assert series["smallest cosine between two rows"] == cosines
    assert series["smallest cosine of the direction with a row"] == [0.1 + step / 1000 for step in taken]
    assert series["cosine of the direction with the plain sum"] == [0.5 + step / 100 for step in taken]
    assert log.confusions() == ([4, 8], [[[3, 1], [0, 2]], [[7, 1], [0, 2]]])
    assert (log.skipped, log.conflict_share) == (1, 4 / 7)  # steps 1, 3, 5 and 7
    log.tracker.close()


def test_one_row_has_no_conflicts_to_show(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    log.step(record(0, rows=False))
    assert log.conflicts() == ([], {})
    assert log.curves() == ([1], {"a": [1.0], "b": [2.0]}, [], [])
    log.tracker.close()


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """What is behind the checkpoint is taken back, and no byte of the file changed; what is left counts."""
    path = tmp_path / "metrics.jsonl"
    filled(tmp_path, 8).tracker.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # the line in hand when the process was killed
    before = path.read_bytes()
    log = MetricsLog(Tracker(tmp_path, None, "e", resume=True), 6, 4)
    assert (log.skipped, log.conflict_share) == (1, 3 / 5)
    log.step(record(6))
    assert log.curves()[0] == [1, 2, 4, 5, 6, 7]
    assert log.confusions()[0] == [4]
    log.tracker.close()
    again = MetricsLog(Tracker(tmp_path, None, "e", resume=True), 7, 4)  # nothing is behind this one
    again.tracker.close()
    assert path.read_bytes().startswith(before)
    added = [json.loads(line) for line in path.read_bytes()[len(before) :].splitlines() if line]
    assert [(line["kind"], line["step"]) for line in added] == [("rewound", 6), ("step", 7)]
    assert added[0]["evaluated"] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_of_the_version_before_goes_on(tmp_path: Path) -> None:
    """Its lines have no numbers; figures and the summary count them all the same."""
    path = tmp_path / "metrics.jsonl"
    filled(tmp_path, 4).tracker.close()
    bare = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in e.items() if k not in ("seq", "time")}) + "\n" for e in bare))
    log = MetricsLog(Tracker(tmp_path, None, "e", resume=True), 3, 0)
    log.tracker.start(run_name="r", params={}, tags={})
    log.tracker.close()
    assert (log.skipped, log.conflict_share, log.curves()[0]) == (1, 1 / 2, [1, 2])
    assert [json.loads(line).get("seq") for line in path.read_text().splitlines()] == [None] * 5 + [1, 2]


def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """A run of a million steps held gigabytes."""
    log = new_log(tmp_path)
    told = record(1)
    tracemalloc.start()
    try:
        sizes = []
        for number in range(1, 2001):
            log.step(told)
            log.evaluation(number, {"val/loss/a": 0.5})
            if number in (1000, 2000):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    log.tracker.close()
    assert sizes[1] - sizes[0] < 10 * 1000  # bytes for a thousand steps
