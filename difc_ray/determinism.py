"""What makes two processes round alike: the same number of threads in every library that adds floats."""

from __future__ import annotations

import os

import torch
from threadpoolctl import threadpool_limits

_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def threads_for(cpus: float) -> int:
    """Threads of a process that was given so many CPUs: its floor, at least 1.

    >>> threads_for(0.5), threads_for(2.9)
    (1, 2)
    """
    return max(1, int(cpus))


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def automatic_cpus(total: float, n_domains: int) -> float:
    """`cpus_per_worker: auto`: min(1, CPUs / (K + 1)), so that K workers and a coordinator fit on what there is.

    >>> automatic_cpus(2.0, 3), automatic_cpus(16.0, 3)
    (0.5, 1.0)
    """
    return min(1.0, int(1000 * total / (n_domains + 1)) / 1000)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that pin a new process before it loads any library."""
    return dict.fromkeys(_POOLS, str(threads))


def pin_threads(threads: int) -> None:
    """Pins torch's, OpenMP's and the BLAS pools of this process.

    Sums of floats depend on how many threads share them (one against two: 2.5e-6 relative, measured), so the
    number is part of a run's identity: the same in every process, and recorded.
    """
    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)
