"""What makes two processes give the same bits: seeds derived by hash, and the same number of threads everywhere."""

from __future__ import annotations

import hashlib
import os

import numpy as np

_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def derive_seed(seed: int, purpose: str, domain: str = "", step: int = 0) -> int:
    """The seed of one draw: 63 bits of the SHA-256 of the four values.

    A new domain, step or purpose changes no other draw, and no draw depends on the order in which draws are made.

    Args:
        seed: seed of the run (or a constant, for what must not depend on the run).
        purpose: what is drawn, e.g. ``"epoch"``.
        domain: name of the domain, empty where the draw belongs to none.
        step: step or epoch, >= 0.

    Returns:
        An integer in [0, 2**63).

    Source: the idea of hash-derived seeds is DomainBed's ``misc.seed_hash``.

    >>> derive_seed(0, "init") == derive_seed(0, "init")
    True
    >>> derive_seed(0, "epoch", "a", 1) == derive_seed(0, "epoch", "a", 2)
    False
    """
    text = "\0".join((str(seed), purpose, domain, str(step)))  # NUL: no name can contain the separator
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, domain: str = "", step: int = 0) -> np.random.Generator:
    """A NumPy generator on :func:`derive_seed`; the bit generator is named, so NumPy's default may change."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, domain, step)))


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
    import torch  # here, as seeds alone need neither
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)
