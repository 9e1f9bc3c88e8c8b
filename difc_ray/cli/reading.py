"""Every example of some domains, read once: in this process, or where they are files in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from difc_ray.config import Config, import_plugins
from difc_ray.data import Domain, open_domain
from difc_ray.determinism import usable_cpus
from difc_ray.errors import DataError
from difc_ray.step.factory import family_of

PART = 64
"""Examples that a process takes at a time."""

FEW = 1024
"""Up to so many files one process is done before others have started."""

_domains: dict[str, Domain] = {}
_config: list[Config] = []


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An example that cannot be used.

    Args:
        domain: its domain.
        file: what a person calls it.
        reason: why.
    """

    domain: str
    file: str
    reason: str


def find_faults(config: Config, domains: Mapping[str, Domain]) -> list[Fault]:
    """All bad examples, in order of domain and position, whatever the number of processes.

    Args:
        config: the configuration, which other processes open the domains from.
        domains: the domains by name, open in this process.

    Raises:
        DataError: a process was ended while it read.
    """
    parts = [
        (name, start, min(start + PART, domain.size()))
        for name, domain in domains.items()
        for start in range(0, domain.size(), PART)
    ]
    files = sum(domain.size() for domain in domains.values() if domain.reads_files)
    if files <= FEW or usable_cpus() == 1:
        return [fault for name, start, end in parts for fault in faults_between(domains[name], start, end)]
    shared = [part for part in parts if domains[part[0]].reads_files]
    alone = {part: faults_between(domains[part[0]], *part[1:]) for part in parts if not domains[part[0]].reads_files}
    found = alone | dict(zip(shared, _read_together(config, shared), strict=True))
    return [fault for part in parts for fault in found[part]]


def faults_between(domain: Domain, start: int, end: int) -> list[Fault]:
    """The bad ones among the positions [start, end) of a domain."""
    found = []
    for position in range(start, end):
        try:
            reason = domain.fault(position)
        except DataError as error:
            reason = str(error)
        if reason:
            found.append(Fault(domain=domain.name, file=domain.path_of(position), reason=reason))
    return found


def _read_together(config: Config, parts: Sequence[tuple[str, int, int]]) -> list[list[Fault]]:
    """Fresh processes: one that was forked from a process with threads may hang."""
    pool = ProcessPoolExecutor(
        usable_cpus(), mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(config,)
    )
    try:
        return list(pool.map(_read, parts))
    except BrokenProcessPool as error:
        raise DataError(
            "every file must be read to its end, got a process that was ended meanwhile (data check). Free memory, or "
            "lower `dataset_options.max_pixels`."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(config: Config) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers
    import_plugins(config.plugins)
    _config[:] = [config]


def _read(part: tuple[str, int, int]) -> list[Fault]:
    name, start, end = part
    if name not in _domains:
        config = _config[0]
        _domains[name] = open_domain(config.dataset, family_of(config), name, look=False)
    return faults_between(_domains[name], start, end)
