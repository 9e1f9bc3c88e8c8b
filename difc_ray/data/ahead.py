"""Items made ahead by other processes: torch's DataLoader, held to what this package needs of it.

Private parts of torch are used here and nowhere else: the list of worker processes, to say which has died, and the end
of them, as `close` and not whenever an iterator is collected.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset

from difc_ray.data.batch import RawBatch
from difc_ray.errors import DifcError

_ENDING_S: Final = 1.0
"""How long a process that has let go of its connections may take to be gone."""


class _Maker(Dataset[Any]):
    """What a loader process does: number -> examples, or the error that a person is to see."""

    def __init__(self, make: Callable[[int], RawBatch]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            drawn = self.make(number)
        except DifcError as error:  # a loader of torch raises another error in its place
            return error
        # Labels and positions are copied into shared memory with the images; small things go with them.
        return drawn.images, drawn.labels, torch.from_numpy(drawn.indices), dict(drawn.replacements)


def _as_it_is(item: Any) -> Any:
    return item


def _begin(_number: int) -> None:
    """A loader process leaves signals to its parent: Ctrl-C and a closed terminal are told to all processes there."""
    gc.freeze()  # what the parent has dropped and not yet collected is not for us to end
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Torch makes the death of a loader process an exception at any line of the program; here it is found by asking."""
    try:
        before = signal.getsignal(signal.SIGCHLD)
        yield
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    except ValueError:  # outside the main thread nothing is installed
        return


class Ahead:
    """Items of consecutive numbers, in order, made by processes.

    Args:
        make: number -> examples.
        first: the first number.
        end: one more than the last.
        processes: >= 1.
        ahead: items per process, >= 1.
        pin: whether they are put into pinned memory.
    """

    def __init__(
        self, make: Callable[[int], RawBatch], first: int, end: int, processes: int, ahead: int, *, pin: bool
    ) -> None:
        methods = multiprocessing.get_all_start_methods()
        with _child_signal_kept():
            loader = DataLoader(
                _Maker(make), batch_size=None, sampler=range(first, end), collate_fn=_as_it_is, num_workers=processes,
                prefetch_factor=ahead, pin_memory=pin, worker_init_fn=_begin,
                generator=torch.Generator().manual_seed(0),  # else it would draw from the generator of all
                multiprocessing_context="fork" if "fork" in methods else None,
            )  # fmt: skip
            self._items = iter(loader)

    def next(self) -> RawBatch:
        """The next item.

        Raises:
            DifcError: its maker's.
            RuntimeError: a process has died.
        """
        try:
            item = next(self._items)
        except (OSError, EOFError) as error:  # torch fetches pictures from the process, which may die meanwhile
            sentinels = [worker.sentinel for worker in self._items._workers]  # type: ignore[attr-defined]
            if not connection.wait(sentinels, timeout=_ENDING_S):
                raise
            raise RuntimeError(f"a process has died: {error}") from error
        if isinstance(item, DifcError):
            raise item
        images, labels, indices, replacements = item
        return RawBatch(images=images, labels=labels, indices=indices.numpy(), replacements=replacements)

    def pids(self) -> list[int]:
        """The processes."""
        return [worker.pid for worker in self._items._workers]  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the processes."""
        self._items._shutdown_workers()  # type: ignore[attr-defined]
