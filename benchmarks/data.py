"""What pictures on disk cost: finding them, decoding and augmenting them, and how long training waits for them.

    python benchmarks/data.py               # everything; makes 20,000 JPEGs in a temporary folder
    python benchmarks/data.py --only load   # index | load | stall | step

`load` runs our loader and a DataLoader of torchvision's v2 transforms in turns, over the same files and
with as many processes. `step` compares a whole step on Ray with the same passes in one process that has all
cores. Ratios are from one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from difc_ray.config import Config, load_config, resolve
from difc_ray.data import Loader, make_augmentation, open_domain, open_family
from difc_ray.data.image_folder import IMAGENET_MEAN, IMAGENET_STD
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.runs.setup import prepare
from difc_ray.step.factory import model_of

DOMAINS, CLASSES, PICTURES, FILE_SIDE, SIDE, BATCH = 4, 10, 20_000, 96, 64, 64
TURNS, TIMED_BATCHES, WARM_UP = 5, 30, 6


def make_pictures(root: Path) -> None:
    """Smooth random pictures of 96×96 as JPEGs of some 3 kB."""
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        folder = root / f"domain{number % DOMAINS}" / f"class{number // DOMAINS % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((FILE_SIDE, FILE_SIDE), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=85)


def index(root: Path) -> None:
    """Seconds to open the folder for the first time, and again in what is as good as another process."""
    from difc_ray.data.image_folder import index as module

    for name in ("cold", "cached"):
        module._READ.clear()
        began = time.perf_counter()
        found = open_family("image_folder", {}, root, 0, SIDE)
        print(f"index, {name:6}: {time.perf_counter() - began:.2f} s for {PICTURES} files")
        assert len(found.domain_names()) == DOMAINS


class Theirs(Dataset[tuple[torch.Tensor, int]]):
    """Files through Pillow and torchvision's v2 transforms."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[position]) as image:
            return self.transform(image.convert("RGB")), 0


def transforms(*, early: bool) -> v2.Compose:
    """DomainBed's pipeline on tensors from the start, or on Pillow's pictures as far as possible."""
    changes = [
        v2.RandomResizedCrop(SIDE, scale=(0.7, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.3, 0.3, 0.3, 0.3), v2.RandomGrayscale(0.1),
    ]  # fmt: skip
    to_tensor = [v2.ToImage()]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return v2.Compose([*to_tensor, *changes, *last] if early else [*changes, *to_tensor, *last])


def theirs(files: list[Path], processes: int, *, early: bool) -> Iterator[None]:
    """Their batches."""
    loader = DataLoader(
        Theirs(files, transforms(early=early)), BATCH, shuffle=True, num_workers=processes, drop_last=True,
        prefetch_factor=2 if processes else None,
    )  # fmt: skip
    while True:
        for _ in loader:
            yield


def ours(root: Path, processes: int) -> Iterator[None]:
    """Our batches, every picture seeded."""
    domain = open_domain("image_folder", open_family("image_folder", {}, root, 0, SIDE), "domain0")
    pipeline = make_augmentation("domainbed", domain.image_shape)
    loader = Loader(domain, 0, BATCH, 10**6, augmentation=pipeline, processes=processes)
    for step in range(10**6):
        loader.batch(step)
        yield


def rate(batches: Iterator[None]) -> float:
    """Pictures per second over some batches."""
    began = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        next(batches)
    return TIMED_BATCHES * BATCH / (time.perf_counter() - began)


def load(root: Path) -> None:
    """Pictures per second of both, in turns; while one runs, the processes of the other wait with full queues."""
    torch.set_num_threads(1)
    files = sorted((root / "domain0").rglob("*.jpg"))
    for processes in (0, 1, 2):
        sides = {
            "ours": ours(root, processes),
            "v2, tensors": theirs(files, processes, early=True),
            "v2, Pillow": theirs(files, processes, early=False),
        }
        for batches in sides.values():
            for _ in range(WARM_UP):
                next(batches)
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(TURNS):
            for name, batches in sides.items():
                for _ in range(2 * processes + 1):  # what was made while it was not its turn
                    next(batches)
                found[name].append(rate(batches))
        median = {name: statistics.median(rates) for name, rates in found.items()}
        best = max(rate for name, rate in median.items() if name != "ours")
        rates = ", ".join(f"{name} {value:,.0f}/s" for name, value in median.items())
        print(f"load, {processes} processes: {rates}: {median['ours'] / best:.2f}x of the faster v2")


def configuration(root: Path, *extra: str, batch: int = BATCH // 2) -> Config:
    """ResNet-18 at 64 pixels on three sources."""
    changes = [
        "dataset=image_folder", f"root={root}", "sources=domain0,domain1,domain2", "target=domain3", "steps=100000",
        f"image_size={SIDE}", "model=resnet18", f"batch_size={batch}", "augment=domainbed", "tracking.mode=off",
    ]  # fmt: skip
    return resolve(load_config(None, [*changes, *extra]))


def measure(config: Config, warm_up: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a run on Ray by part."""
    engine = RayEngine(config, "benchmark", lambda: False, lambda text: print("note:", text))
    try:
        engine.connect()
        engine.start(prepare(config, None).state)
        engine.advance(warm_up)
        records = engine.advance(steps)
    finally:
        engine.close()
    parts = ("step", "compute", "loading", "transport", "coordinator")
    return {part: 1e3 * statistics.median(record.seconds[part] for record in records) for part in parts}


def stall(root: Path, steps: int) -> None:
    """Share of a step in which the slowest worker waits for its batch."""
    for processes in ("auto", "0"):
        ms = measure(configuration(root, f"loader.processes={processes}"), 5, steps)
        print(
            f"stall, ResNet-18, K = 3, {SIDE} px, loader.processes={processes}: step {ms['step']:.0f} ms, of it "
            f"waiting for pictures {ms['loading']:.1f} ms = {ms['loading'] / ms['step']:.1%}"
        )


def one_process(config: Config, steps: int, backward: int) -> float:
    """Median milliseconds of three forward and some backward passes of the same model and batches, all cores."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, loss = model_of(config)
    model.train()
    shape = (config.batch_size, 3, SIDE, SIDE)
    batches = [(torch.randn(shape), torch.randint(0, CLASSES, (config.batch_size,))) for _ in config.sources]
    parameters = list(model.parameters())
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        for images, labels in batches:
            value = loss.value(model(images), labels)
            for number in range(backward):
                torch.autograd.grad(value, parameters, retain_graph=number + 1 < backward)
        took.append(time.perf_counter() - began)
    return 1e3 * statistics.median(took[2:])


def step(root: Path, steps: int) -> None:
    """A whole step on Ray, with loading, exchange, rule and optimizer, against the passes alone."""
    plain = ("alignment.alpha=0", "alignment.beta=0", "harmonize.rule=mean")
    for batch, name, extra, backward in (
        (BATCH // 2, "one row per domain", plain, 1),
        (BATCH, "one row per domain", plain, 1),
        (BATCH // 2, "two rows, ghpp", (), 2),
        (BATCH, "two rows, ghpp", (), 2),
    ):
        config = configuration(root, *extra, batch=batch)
        before = one_process(config, steps, backward)
        ms = measure(config, 4, steps)
        after = one_process(config, steps, backward)
        passes = (before + after) / 2
        print(
            f"step, ResNet-18, K = 3, {SIDE} px, batch {config.batch_size}, {name}: {ms['step']:.0f} ms on Ray, the "
            f"passes alone {passes:.0f} ms: {ms['step'] / passes:.2f}x (compute {ms['compute']:.0f}, of it loading "
            f"{ms['loading']:.0f}; transport {ms['transport']:.0f}, coordinator {ms['coordinator']:.0f})"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("index", "load", "stall", "step"))
    parser.add_argument("--steps", type=int, default=20, help="steps of the training measurements")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        root = Path(folder) / "pictures"
        make_pictures(root)
        jobs: dict[str, Callable[[], None]] = {
            "index": lambda: index(root),
            "load": lambda: load(root),
            "stall": lambda: stall(root, given.steps),
            "step": lambda: step(root, given.steps),
        }
        for name, job in jobs.items():
            if given.only in (None, name):
                job()


if __name__ == "__main__":
    main()
