"""The folder of a sweep: what is written comes back, and what is damaged is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difc_ray.errors import CheckpointError
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.space import Space
from difc_ray.sweeps.sweep import find_sweep
from difc_ray.sweeps.trials import Point
from tests.spaces import checked, text_of, written


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[SweepFolder, Space, list[Point]]:
    """A new sweep of four trials, none of which has run."""
    space, base, points = checked(written(tmp_path, text_of()), [f"output={tmp_path / 'runs'}"])
    folder = SweepFolder(tmp_path / "runs" / "s")
    folder.create(space, base, points, "the key")
    return folder, space, points


POINT = Point(number=7, setting=3, seed=2**62, values={"a.b": 1e-3, "rule": "gh", "list": [1, "x"]}, fold="fonts")

RECORDS = {
    "waiting": TrialRecord(point=POINT),
    "failed": TrialRecord(point=POINT, status="failed", reason="Größe\n„λ“", step=12, seconds=1 / 3),
    "branched": TrialRecord(
        point=POINT, status="running", lineage=({"step": 4, "from": 1, "values": {"a.b": 0.1}}, {"step": 8, "from": 0})
    ),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_comes_back(case: str, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.trials.mkdir()
    folder.write(RECORDS[case])
    assert folder.record(7) == RECORDS[case]
    assert sorted(path.name for path in folder.trials.iterdir()) == ["00007.json"]
    folder.update(7, status="stopped", step=99)
    found = folder.record(7)
    assert found is not None
    assert (found.status, found.step, found.point) == ("stopped", 99, POINT)


def test_a_sweep_comes_back(sweep: tuple[SweepFolder, Space, list[Point]]) -> None:
    folder, space, points = sweep
    sheet = folder.read()
    assert (sheet["name"], sheet["space"], sheet["key"], sheet["digest"]) == ("s", "given", "the key", space.digest)
    assert sheet["points"] == points
    assert (folder.path / "space.yaml").read_text() == text_of()
    assert folder.records() == [TrialRecord(point=point) for point in points]
    done = TrialRecord(point=points[2], status="finished", step=40)
    made_up = TrialRecord(point=Point(number=9, setting=9, seed=0, values={"alignment.alpha": 2.0}), status="stopped")
    for record in (done, made_up):
        folder.write(record)
    assert folder.records() == [*(TrialRecord(point=p) for p in points[:2]), done,
                                TrialRecord(point=points[3]), made_up]  # fmt: skip


DAMAGE = {
    "empty": "",
    "cut off": '{"point": {"number": 1, "setti',
    "a list": "[]",
    "a number": "3",
    "without a point": '{"status": "finished", "lineage": []}',
    "with a point of another version": '{"point": {"number": 1, "colour": "red"}, "status": "finished", "lineage": []}',
    "with an unknown field": json.dumps(
        {"point": {"number": 1, "setting": 1, "seed": 0}, "lineage": [], "status": "finished", "shape": 1}
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_record_counts_as_not_run(case: str, sweep: tuple[SweepFolder, Space, list[Point]]) -> None:
    """Better to train a trial again than to believe that it has ended."""
    folder, _, points = sweep
    folder.write(TrialRecord(point=points[1], status="finished", step=40))
    (folder.trials / "00001.json").write_text(DAMAGE[case])
    assert folder.record(1) is None
    assert folder.records() == [TrialRecord(point=point) for point in points]
    folder.update(1, status="stopped")
    assert (folder.trials / "00001.json").read_text() == DAMAGE[case]


def test_a_truncated_or_foreign_sheet_is_refused(sweep: tuple[SweepFolder, Space, list[Point]], tmp_path: Path) -> None:
    """At every length, with a sentence that names the file and the remedy; never half of a sweep."""
    folder, space, points = sweep
    base = checked(tmp_path / "given.yaml", ["name=s", f"output={tmp_path / 'runs'}"])[1]
    whole = folder.sheet.read_bytes().rstrip()
    assert find_sweep(space, base).records()[0].point == points[0]
    for damaged in [*(whole[:n] for n in range(0, len(whole), 37)), whole[:-1], b"{}", b"[]", b'"s"', b"\xff\xfe"]:
        folder.sheet.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"`sweep\.json` must list the sweep's trials, got .*Restore it"):
            find_sweep(space, base)
    folder.sheet.unlink()
    with pytest.raises(CheckpointError, match=r"must have its `sweep\.json`, got none \(`.*runs/s`\)"):
        find_sweep(space, base)


def test_the_sweep_to_resume(sweep: tuple[SweepFolder, Space, list[Point]], tmp_path: Path) -> None:
    """By its name, or the newest of the same space; a damaged one and one of another space are not taken."""
    folder, space, _ = sweep
    output = f"output={tmp_path / 'runs'}"
    _, base, points = checked(tmp_path / "given.yaml", [output])
    assert find_sweep(space, base).path == folder.path
    damaged = SweepFolder(tmp_path / "runs" / "damaged")
    damaged.create(space, base, points, "")
    damaged.sheet.write_text("{")
    (tmp_path / "other").mkdir()
    other, other_base, more = checked(written(tmp_path / "other", text_of(samples="5")), [output])
    assert other.digest != space.digest
    with pytest.raises(CheckpointError, match=r"there must be a sweep of `.*` to resume, got none"):
        find_sweep(other, other_base)
    SweepFolder(tmp_path / "runs" / "other").create(other, other_base, more, "")
    assert find_sweep(space, base).path == folder.path
    assert find_sweep(other, other_base).path.name == "other"
    named = base.model_copy(update={"name": "other"})
    with pytest.raises(
        CheckpointError, match=r"its own space, got `.*given\.yaml` for a sweep of `given`.*space\.yaml"
    ):
        find_sweep(space, named)
    with pytest.raises(CheckpointError, match=r"must have its `sweep\.json`, got none"):
        find_sweep(space, base.model_copy(update={"name": "nothing"}))


def test_the_end_of_a_journal_that_is_cut_off_is_left_out(sweep: tuple[SweepFolder, Space, list[Point]]) -> None:
    folder = sweep[0]
    lines = [
        {"kind": "step", "step": 0, "loss": 1.0},
        {"kind": "evaluation", "step": 10, "selection/score": 0.5},
        {"kind": "evaluation", "step": 20, "selection/score": 0.75},
    ]
    folder.run_dir(0).mkdir()
    path = folder.run_dir(0) / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "evaluation", "st')
    found = folder.evaluations(0)
    assert (found.steps, found.values) == ([10, 20], [{"selection/score": 0.5}, {"selection/score": 0.75}])
    assert folder.evaluations(1).steps == []
    assert folder.summary(0) is None


def test_the_folder_of_a_trial_without_a_valid_checkpoint_is_set_aside(
    sweep: tuple[SweepFolder, Space, list[Point]],
) -> None:
    folder = sweep[0]
    assert folder.set_aside(3) is None
    for count in (1, 2):
        (folder.run_dir(3) / "checkpoints" / "step-00000004").mkdir(parents=True)
        (folder.run_dir(3) / "notes.txt").write_text(str(count))
        assert not folder.can_resume(3)
        aside = folder.set_aside(3)
        assert aside is not None
        assert aside.name == f"00003-{count}"
        assert (aside / "notes.txt").read_text() == str(count)
        assert not folder.run_dir(3).exists()
