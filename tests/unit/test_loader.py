"""Loader processes: the same batches for any number of them, whatever happens to them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from difc_ray.data import (
    AugmentationError,
    Batch,
    Domain,
    Loader,
    MalformedDataError,
    make_augmentation,
    open_domain,
    open_family,
)
from difc_ray.data import loader as module
from difc_ray.errors import DataError

SIDE, STEPS = 12, 9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / "a" / kind).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "a" / kind / f"{number:02}.png")
    return folder


def domain_of(root: Path, bad: str = "raise") -> Domain:
    return open_domain("image_folder", open_family("image_folder", {}, root, 0, SIDE, bad), "a")


@pytest.fixture
def make(root: Path) -> Iterator[Any]:
    made: list[Loader] = []

    def loader(augment: str = "domainbed", domain: Domain | None = None, **settings: Any) -> Loader:
        domain = domain or domain_of(root)
        pipeline = make_augmentation(augment, domain.image_shape)
        made.append(Loader(domain, 7, 6, STEPS, augmentation=pipeline, **settings))
        return made[-1]

    yield loader
    for each in made:
        each.close()


def same(one: Batch, other: Batch) -> bool:
    equal = torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    return equal and np.array_equal(one.indices, other.indices)


@pytest.mark.parametrize("augment", ["none", "domainbed"])
def test_any_number_of_processes_makes_the_same(make: Any, augment: str) -> None:
    alone = make(augment)
    expected = [alone.batch(step) for step in range(STEPS)]
    assert alone.pids() == []
    for processes, ahead in ((1, 1), (2, 3)):
        other = make(augment, processes=processes, ahead=ahead)
        assert all(same(other.batch(step), expected[step]) for step in range(STEPS))
        assert len(other.pids()) == processes


def test_steps_in_any_order(make: Any) -> None:
    """A step is repeated when a worker was replaced, and a resumed run begins somewhere."""
    alone, ahead = make(), make(processes=1)
    for step in (4, 5, 5, 6, 0, 1, 8):
        assert same(ahead.batch(step), alone.batch(step))


def test_a_loader_process_that_dies_is_replaced(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    alone, ahead = make(), make(processes=2)
    assert same(ahead.batch(0), alone.batch(0))
    killed = ahead.pids()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    for step in range(1, STEPS):
        assert same(ahead.batch(step), alone.batch(step))
    assert not set(killed) & set(ahead.pids())
    assert "loader processes are started again" in caplog.text


class CutOff:
    """Items of which torch cannot fetch the next one."""

    def __init__(self, items: Any) -> None:
        self._workers, self._shutdown_workers = items._workers, items._shutdown_workers

    def __next__(self) -> None:
        raise ConnectionResetError("reset by peer")


@pytest.mark.parametrize("dead", [True, False])
def test_a_connection_that_is_cut_is_a_death_if_there_was_one(make: Any, dead: bool) -> None:
    """What is being fetched when a process dies is lost in torch's own way; without a death it is no such thing."""
    alone, ahead = make(), make(processes=2)
    ahead.batch(0)
    before = ahead.pids()
    if dead:
        os.kill(before[1], signal.SIGKILL)
    ahead._ahead._items = CutOff(ahead._ahead._items)
    if not dead:
        with pytest.raises(ConnectionResetError):
            ahead.batch(1)
        return
    assert same(ahead.batch(1), alone.batch(1))
    assert not set(before) & set(ahead.pids())


@pytest.mark.slow  # torch looks for its processes every five seconds
def test_loader_processes_that_die_again_and_again(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DEATHS", 1)
    loader = make(processes=1)
    loader._make = lambda step: os._exit(9)
    with pytest.raises(DataError, match=r"domain `a` must stay alive, got 2 deaths, .* `loader.processes=0` loads"):
        loader.batch(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_are_left_to_the_parent(make: Any, number: int) -> None:
    alone, ahead = make(), make(processes=1)
    ahead.batch(0)
    (pid,) = ahead.pids()
    os.kill(pid, number)
    assert same(ahead.batch(1), alone.batch(1))
    assert ahead.pids() == [pid]


def test_nothing_is_left_behind(make: Any) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    drawn = torch.get_rng_state()
    loader = make(processes=2)
    loader.batch(0)
    children = [psutil.Process(pid) for pid in loader.pids()]
    loader.close()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert signal.getsignal(signal.SIGCHLD) == before
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_evaluation_is_not_augmented_and_in_order(make: Any, root: Path, split: str) -> None:
    plain = list(domain_of(root).evaluation_batches(split, 7))
    for processes in (0, 2):
        found = list(make(processes=processes).evaluation(domain_of(root), split, 7))
        assert len(found) == len(plain)
        assert all(same(one, other) for one, other in zip(found, plain, strict=True))


def test_an_evaluation_that_is_not_finished_leaves_no_process(make: Any, root: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    examples = make(processes=1).evaluation(domain_of(root), "all", 7)
    next(examples)
    examples.close()
    left = [child for child in psutil.Process().children() if child.pid not in before]
    assert not psutil.wait_procs(left, timeout=5)[1]


def test_bad_pictures_are_replaced_and_counted_here(make: Any, root: Path, tmp_path: Path) -> None:
    """Whoever meets them, the worker knows of them and counts them in the summary."""
    shutil.copytree(root, tmp_path / "copy")
    bad = sorted((tmp_path / "copy" / "a" / "cat").iterdir())[::3]
    for path in bad:
        path.write_bytes(b"")
    kept = (domain_of(tmp_path / "copy", "skip") for _ in range(2))
    alone, ahead = make(domain=next(kept)), make(domain=next(kept), processes=2)
    assert all(same(ahead.batch(step), alone.batch(step)) for step in range(STEPS))
    assert ahead.domain.replacements == alone.domain.replacements
    assert 0 < ahead.domain.replaced("train") <= len(bad)


def test_a_bad_picture_is_said_as_it_is(make: Any, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    domain = domain_of(tmp_path / "copy")
    for path in (tmp_path / "copy" / "a" / "dog").iterdir():
        path.write_bytes(b"no picture")
    loader = make(domain=domain, processes=1)
    with pytest.raises(MalformedDataError, match=r"must be one that can be read, got `a/dog/\d\d.png`, no picture"):
        [loader.batch(step) for step in range(STEPS)]


def test_a_pipeline_that_fails_is_said_with_the_picture(make: Any, root: Path, tmp_path: Path) -> None:
    import albumentations

    path = tmp_path / "p.yaml"
    crop = albumentations.Compose([albumentations.RandomCrop(25, 25), albumentations.Resize(SIDE, SIDE)])
    albumentations.save(crop, path, data_format="yaml")
    with pytest.raises(AugmentationError, match=r"20×30 pixels: .* \(augment, domain `a`, `a/\w+/\d\d.png`\)"):
        make(str(path), processes=1).batch(0)


def test_batches_must_fit_into_the_shared_memory(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=6 * SIDE * SIDE * 3 * 2))
    with pytest.raises(DataError, match=r"2 × 2 batches of domain `a` must fit into half of the free shared memory"):
        make(processes=2).batch(0)
    make(processes=1, ahead=1).batch(0)


@pytest.mark.parametrize("processes", [0, 1])
def test_batches_go_to_the_device(make: Any, root: Path, processes: int) -> None:
    """Bytes are moved and normalised there; here it is a device without memory."""
    loader = make(processes=processes, device=torch.device("meta"))
    batches = [
        loader.batch(0),
        next(loader.evaluation(domain_of(root), "val")),
        next(loader.examples(domain_of(root), np.arange(3))),
    ]
    assert all(batch.images.is_meta and batch.labels.is_meta for batch in batches)
    assert [tuple(batch.images.shape[1:]) for batch in batches] == [(3, SIDE, SIDE)] * 3
    assert all(batch.images.dtype == torch.float32 for batch in batches)


def test_waiting_is_measured(make: Any) -> None:
    loader = make()
    loader.batch(0)
    first = loader.stalled_s
    loader.batch(1)
    assert 0 < first < loader.stalled_s


def test_torch_has_its_workers_where_they_are_looked_for() -> None:
    """`difc_ray/data/ahead.py` asks torch for the processes behind a loader, which has no public name for them."""
    items = iter(DataLoader(range(4), num_workers=1))
    for name in ("_workers", "_shutdown_workers"):
        assert hasattr(items, name), f"torch {torch.__version__} has moved `{name}` of a loader: mend data/ahead.py"
    (worker,) = items._workers
    assert worker.is_alive()
    assert psutil.pid_exists(worker.pid)
    assert not connection.wait([worker.sentinel], timeout=0)
    items._shutdown_workers()
    assert not worker.is_alive()
