"""`difc-ray doctor`: what this machine and this configuration have, line by line."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.markup import escape

from difc_ray import __version__
from difc_ray.cli.console import console
from difc_ray.config import Config, check_paths, resolve
from difc_ray.determinism import usable_cpus
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.engines.ray.preflight import step_bytes
from difc_ray.errors import DifcError
from difc_ray.runs.fingerprint import versions
from difc_ray.secrets import masked
from difc_ray.step.factory import model_of
from difc_ray.tracking import probe, resolve_uri
from difc_ray.vectors import ParameterLayout

Finding = tuple[bool, str]
"""Whether a check passed, and the line on it (with the remedy where it did not)."""

RAY_SHARED_BYTES = 80 * 2**20
"""Room that Ray's smallest object store takes."""


def examine(config: Config) -> int:
    """Prints all findings; returns the exit code 0, or 4 where something is missing."""
    checks: dict[str, Callable[[Config], Finding]] = {
        "versions": _versions,
        "gpu": _gpu,
        "shared memory": _shared_memory,
        "output": _output,
        "mlflow": _mlflow,
        "ray": _ray,
    }
    passed = True
    for name, check in checks.items():
        fine, line = _found(check, config)
        passed = passed and fine
        mark = "[green]ok[/]     " if fine else "[red]problem[/]"
        console.print(f"{mark}  {name:<14} {escape(line)}", soft_wrap=True)
    return 0 if passed else 4


def _found(check: Callable[[Config], Finding], config: Config) -> Finding:
    """What a check finds, whatever happens in it."""
    try:
        return check(config)
    except DifcError as error:
        return False, str(error)
    except Exception as error:  # of a library, on a machine that we have not seen
        words = " ".join(str(error).split())
        return False, f"unexpected error, got {type(error).__name__}: {words} (doctor). Look for these words."


def _versions(config: Config) -> Finding:
    found = versions() | {"difc-ray": __version__}  # which may run from its sources
    missing = [name for name, version in found.items() if version == "not installed"]
    if missing:
        return False, f"{', '.join(missing)} not installed. Install with `pip install -c constraints.txt .`"
    return True, ", ".join(f"{name} {version}" for name, version in found.items())


def _gpu(config: Config) -> Finding:
    wanted = config.cluster.gpus_per_worker
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return True, f"{len(names)} GPU(s): {', '.join(names)}"
    if wanted not in ("auto", 0) and config.engine == "ray" and not _address(config):
        return False, f"none, and `cluster.gpus_per_worker={wanted:g}` wants some. Write `cluster.gpus_per_worker=0`."
    return True, f"none; runs use {usable_cpus()} CPU(s)"


def _shared_memory(config: Config) -> Finding:
    size = ParameterLayout.of(model_of(config)[0]).size
    needed = step_bytes(size, len(config.sources)) + RAY_SHARED_BYTES
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return True, "no /dev/shm here; Ray uses temporary files, which is slower"
    free = shutil.disk_usage(shm).free
    text = f"{free / 2**20:,.0f} MB free in /dev/shm, {needed / 2**20:,.0f} MB needed for {size:,} parameters"
    if free < needed:
        return False, f"{text}. Enlarge it (Docker: `--shm-size={2 * needed // 2**20}m`), or Ray falls back to disk."
    return True, text


def _output(config: Config) -> Finding:
    problems = check_paths(config)
    if problems:
        return False, problems[0]
    folder = resolve(config).output
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    with tempfile.NamedTemporaryFile(dir=existing) as file:
        file.write(os.urandom(1 << 20))
        file.flush()
    free = shutil.disk_usage(existing).free
    return True, f"{folder} is writable, {free / 2**30:,.0f} GB free"


def _mlflow(config: Config) -> Finding:
    if config.tracking.mode == "off":
        return True, "off (`tracking.mode=off`); records stay in the run's folder"
    uri = resolve_uri(config.tracking.uri, resolve(config).output, os.environ)
    trouble = probe(uri, timeout_s=5.0)
    if trouble:
        return False, f"{trouble} Runs go on without it and keep their records for `difc-ray sync`."
    return True, masked(uri)


def _ray(config: Config) -> Finding:
    engine = RayEngine(resolve(config), "doctor", lambda: False, lambda text: None)
    began = time.monotonic()
    try:
        engine.connect()
        plan = engine.plan
        seconds = time.monotonic() - began
    finally:
        engine.close()
    each = f"{plan.cpus:g} CPU" + (f" and {plan.gpus:g} GPU per domain" if plan.gpus else "")
    how = f"cluster at {_address(config)} answered" if _address(config) else "started"
    return True, f"{how} in {seconds:.1f} s; a run takes {len(plan.bundles)} × {each}, {engine.threads} thread(s) each"


def _address(config: Config) -> str:
    """The cluster that a run would join; empty: it starts its own."""
    address = config.cluster.address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address
