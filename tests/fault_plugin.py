"""A plug-in whose dataset, model and objectives go wrong where they are told to.

``dataset: faulty`` takes the options ``folder`` (where it leaves a mark for every fault that fired) and ``faults``, a
list of mappings: ``kind``, ``domain``, ``step`` (-1: every step), ``where`` (`batch`, `respond`, `surrogate`,
`evaluation`, `gradient`, in a Ray worker also `load`, at step -1, or one of :mod:`tests.fault_points`; default
`batch`), ``times`` (default 1; 0: always), ``after`` (a mark without which nothing happens) and what the kind needs
besides. Without faults it is an ordinary dataset: its content depends on neither option.

kinds in every engine: `raise` (RuntimeError), `data` (DataError), `nan` (a pixel of the batch), `infinite` (an entry
of the gradient of ``head.weight``; needs ``model: faulty_mlp``), `signal` (``number``, to this process), `wait`
(``seconds``; no more once the mark ``until`` exists, if one is given), `hold` (until the mark ``until`` exists),
`differ` (negated images, once the mark ``after`` exists). In a Ray worker only: `kill`, `stop`, `exit`,
`kill_coordinator`, `stop_coordinator`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from difc_ray.data import DATASETS, Batch, DatasetFamily, Domain, RawBatch
from difc_ray.determinism import generator
from difc_ray.errors import DataError
from difc_ray.models import MODELS, Model
from difc_ray.models.small import MlpOptions
from difc_ray.objectives import OBJECTIVES, Measurement
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.hgp import Hgp
from difc_ray.objectives.hutchinson import Hutchinson
from tests.fault_points import install
from tests.processes import command_of
from tests.waiting import FOREVER_S

EXAMPLES, SHAPE, CLASSES = 160, (1, 8, 8), ("w", "x", "y", "z")
CHANGED = "content-changed"
"""A file of this name in the folder makes it another dataset, as when somebody exchanges the files."""


@dataclass(frozen=True, kw_only=True)
class FaultyOptions:
    """Options of the dataset."""

    folder: str = ""
    """Where faults leave their marks."""
    faults: tuple[dict[str, Any], ...] = ()
    """What goes wrong, and when."""
    api_token: str = ""
    """Not to be seen in any log."""


class Faults:
    """The faults of a run, as its configuration lists them."""

    def __init__(self, options: FaultyOptions) -> None:
        self.folder = Path(options.folder)
        self.plan: list[dict[str, Any]] = [dict(fault) for fault in options.faults]

    def due(self, where: str, domain: str, step: int) -> Iterator[dict[str, Any]]:
        """The faults that fire here and now; each leaves its mark before it does."""
        for fault in self.plan:
            at = fault.get("where", "batch"), fault["domain"], fault["step"] if fault["step"] >= 0 else step
            after = fault.get("after")
            if (
                at == (where, domain, step)
                and (after is None or (self.folder / after).exists())
                and self.mark(fault, step)
            ):
                yield fault

    def mark(self, fault: Mapping[str, Any], step: int) -> bool:
        """Leaves a mark; False if the fault has fired as often as it should."""
        times = fault.get("times", 1)
        name = f"{fault.get('where', 'batch')}-{fault['kind']}-{fault['domain']}-{step}"
        number = 0
        while (self.folder / f"{name}-{number}").exists():
            number += 1
        if times and number >= times:
            return False
        (self.folder / f"{name}-{number}").write_text(str(os.getpid()))
        return True


def marks(folder: Path) -> list[str]:
    """What fired: ``<where>-<kind>-<domain>-<step>-<how many times before>``."""
    return sorted(path.name for path in folder.iterdir() if path.name[-1].isdigit())


@dataclass(frozen=True)
class Moment:
    """Where this process is: set by the batch, read by what follows it in the step."""

    faults: Faults
    domain: str = ""
    step: int = -1


_now = Moment(Faults(FaultyOptions()))


def go_wrong(fault: Mapping[str, Any]) -> None:
    """Does what needs nothing but the process."""
    kind = fault["kind"]
    if kind in ("kill", "stop", "exit", "kill_coordinator", "stop_coordinator"):
        assert in_ray_worker(), f"`{kind}` is for workers; this process is the driver"
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "exit":
        os._exit(3)
    elif kind in ("kill_coordinator", "stop_coordinator"):
        siblings = psutil.Process(os.getppid()).children()
        coordinators = [s for s in siblings if "".join(command_of(s)).startswith("ray::Coordinator")]
        ours = max(coordinators, key=psutil.Process.create_time)  # others may serve other tests
        ours.send_signal(signal.SIGKILL if kind == "kill_coordinator" else signal.SIGSTOP)
        time.sleep(FOREVER_S)  # we end with it
    elif kind == "raise":
        raise RuntimeError("a bug of the user's")
    elif kind == "data":
        raise DataError("Image 7 must be readable. Found a truncated file. Replace it.")
    elif kind == "signal":
        os.kill(os.getpid(), fault["number"])
    elif kind == "wait":
        until = _now.faults.folder / fault.get("until", "")
        if "until" not in fault or not until.exists():
            time.sleep(fault["seconds"])
    elif kind == "hold":
        until = _now.faults.folder / fault["until"]
        while not until.exists():
            time.sleep(0.02)


def here(where: str) -> None:
    """What is due at a place in the code of the workers: see :mod:`tests.fault_points`."""
    if not in_ray_worker():
        return
    for fault in _now.faults.due(where, _now.domain, _now.step):
        go_wrong(fault)


def in_ray_worker() -> bool:
    """Whether this process is one of Ray's, and not the driver."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_actor_id())


class FaultyDomain(Domain):
    """Four classes of noisy prototypes, in another light in each domain."""

    def __init__(self, name: str, seed: int, faults: Faults) -> None:
        rng = generator(0, "faulty", name)
        labels = np.arange(EXAMPLES, dtype=np.int64) % len(CLASSES)
        prototypes = generator(0, "prototypes").normal(size=(len(CLASSES), *SHAPE))
        noise = rng.normal(size=(EXAMPLES, *SHAPE))
        light = rng.normal() + (faults.folder / CHANGED).exists()
        self._images = (prototypes[labels] + noise + light).astype(np.float32)
        self._faults = faults
        if in_ray_worker():
            global _now
            _now = Moment(faults, name)  # for what comes before the first batch
        super().__init__(name, CLASSES, SHAPE, labels, seed)
        here("load")

    def images_at(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]

    def draw(self, seed: int, step: int, batch_size: int, *more: Any) -> RawBatch:
        global _now
        _now = Moment(self._faults, self.name, step)
        drawn = super().draw(seed, step, batch_size, *more)
        for fault in self._faults.due("batch", self.name, step):
            go_wrong(fault)
            if fault["kind"] == "nan":
                drawn.images[0, 0, 3, 4] = float("nan")
            if fault["kind"] == "differ":
                drawn = replace(drawn, images=-drawn.images)
        return drawn

    def evaluation_batches(self, split: Any, batch_size: int = 256) -> Iterator[Batch]:
        for fault in self._faults.due("evaluation", self.name, _now.step):
            go_wrong(fault)
        return super().evaluation_batches(split, batch_size)


@DATASETS.register("faulty", options=FaultyOptions)
class FaultyFamily(DatasetFamily):
    description = "noise with faults, for tests"
    class_names = CLASSES
    image_shape = SHAPE

    def domain_names(self) -> tuple[str, ...]:
        return ("a", "b", "c", "d")

    def load(self, domain_name: str) -> Domain:
        self.check_domain(domain_name)
        return FaultyDomain(domain_name, self.seed, Faults(self.options))


@MODELS.register("faulty_mlp", options=MlpOptions)
def faulty_mlp(image_shape: tuple[int, int, int], n_outputs: int, options: MlpOptions) -> Model:
    """An `mlp` whose gradient of ``head.weight`` can have an infinite entry."""
    model = MODELS.get("mlp")(image_shape, n_outputs, options)
    seen = {"now": _now}

    def remember(module: nn.Module, inputs: Any) -> None:
        seen["now"] = _now

    def spoil(gradient: Tensor) -> Tensor:
        now = seen["now"]
        if any(fault["kind"] == "infinite" for fault in now.faults.due("gradient", now.domain, now.step)):
            gradient = gradient.clone()
            gradient[1, 2] = -torch.inf
        return gradient

    model.featurizer.register_forward_pre_hook(remember)
    model.head.weight.register_hook(spoil)
    return model


class _Watched:
    """An objective that can go wrong in each of its answers."""

    _seen = _now

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._seen = _now
        return super().measure(head, probes)

    def respond(self, measurement: Measurement, exchange: int, broadcast: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._go_wrong("respond")
        return super().respond(measurement, exchange, broadcast)

    def surrogate(self, measurement: Measurement, cotangent: Mapping[str, Tensor]) -> Tensor:
        self._go_wrong("surrogate")
        return super().surrogate(measurement, cotangent)

    def _go_wrong(self, where: str) -> None:
        for fault in self._seen.faults.due(where, self._seen.domain, self._seen.step):
            go_wrong(fault)


@OBJECTIVES.register("faulty_hutchinson")
class FaultyHutchinson(_Watched, Hutchinson):
    pass


@OBJECTIVES.register("faulty_hgp")
class FaultyHgp(_Watched, Hgp):
    pass


install(here)
