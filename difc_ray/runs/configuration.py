"""Which configuration somebody asks for: a file and arguments, a run to continue, or one that MLflow holds."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from difc_ray.config import Config, ConfigProblems, load_config, resolve
from difc_ray.config.overrides import as_argument, owner, parse_overrides
from difc_ray.config.schema import leaves
from difc_ray.errors import ConfigError, DifcError
from difc_ray.nested import put
from difc_ray.options import absolute
from difc_ray.runs.reading import newest_checkpoint, recorded_settings
from difc_ray.runs.setup import run_tags, run_to_resume, tracking_uri
from difc_ray.runs.state import Start
from difc_ray.tracking import RecordedRun, read_run, resolve_uri, spoiled

NOT_REPEATED = ("log_level", "name", "output", "profile", "resume", "tracking")
"""Keys and sections that a run does not take from the run that it repeats."""

NOT_READ = ("trial",)
"""Sections that a single run does not read, and that a run to repeat may lack."""


def requested_config(
    file: Path | None, overrides: Sequence[str], *, paths: bool = True, about: Collection[str] | None = None
) -> Config:
    """The configuration that a command line asks for; one that resumes begins with that of the run it continues.

    Args:
        file: configuration file, or None.
        overrides: `key=value` arguments.
        paths: whether the output folder is checked as before a run.
        about: the only keys whose values must fit together; None: all of them.

    Raises:
        ConfigProblems: with all problems; nothing has been written.
        ConfigError: nothing can be recorded at the tracking URI.
        CheckpointError: `resume` names no run.
    """
    resume, output = _resume_and_output(file, overrides)
    run_dir = None if resume is None else run_to_resume(resume, output)
    base = None
    if run_dir is not None:  # which may have been moved since its configuration was written
        base = recorded_settings(newest_checkpoint(run_dir)[0])
        # a profile is asked for every time
        base |= {"name": run_dir.name, "output": str(run_dir.parent), "profile": None}
    config = load_config(file, overrides, base=base, paths=paths, about=about)
    if run_dir is not None:
        _refuse_another_place(config, run_dir)
    tracking_uri(resolve(config))
    return config


def _refuse_another_place(config: Config, run_dir: Path) -> None:
    """A run that is continued stays where it is: another name or folder is not ignored in silence."""
    output = config.output.expanduser().resolve()
    for key, given, held in (("name", config.name, run_dir.name), ("output", output, run_dir.resolve().parent)):
        if given != held:
            raise ConfigError(
                f"`{key}` must be that of the run which is continued, got `{given}` (`resume={run_dir}`). "
                f"Leave `{key}` out, or for a new run `resume`, which may stand in a file of settings."
            )


def _resume_and_output(file: Path | None, overrides: Sequence[str]) -> tuple[str | None, Path]:
    """What to resume, and where runs lie, as far as it can be told without the run that is resumed."""
    try:
        config = resolve(load_config(file, overrides))
    except DifcError:  # said again, or not, when the values of the run are below these
        given = dict(argument.split("=", 1) for argument in overrides if "=" in argument)
        resume = given.get("resume", "null")
        return None if resume in ("", "null") else resume, Path(given.get("output", "runs")).expanduser().absolute()
    return config.resume, config.output


def repeated_config(run_id: str, overrides: Sequence[str]) -> tuple[Config, RecordedRun]:
    """The configuration of a run that MLflow holds, under a new name, and that run.

    All of it comes from the run's parameters, so that the new run ends in the same weights; what says where a run is
    kept (`name`, `output`, `resume`, `tracking`) does not.

    Args:
        run_id: MLflow's id of the run.
        overrides: `key=value` arguments, which change the configuration and name the store.

    Raises:
        ConfigProblems: with all problems; among them parameters that MLflow does not hold, or not in full.
        ConfigError: the store cannot be read, or has no such run; or the arguments resume another run.
    """
    given, _ = parse_overrides(overrides)
    if given.get("resume") is not None:
        raise ConfigError(
            f"a run is repeated or resumed, got --from-run and `resume={given['resume']}` (command line). Remove one "
            "of them."
        )
    output = absolute(Path(str(given.get("output") or leaves()["output"].default)))
    address = given.get("tracking.uri")
    run = read_run(resolve_uri(address if isinstance(address, str) else None, output, os.environ), run_id)
    config = load_config(None, overrides, base=_recorded_values(run, tuple(given)), paths=True)
    tracking_uri(resolve(config))
    return config, run


def _recorded_values(run: RecordedRun, given: Sequence[str]) -> dict[str, Any]:
    """The nested values behind a run's parameters, without those that the command line gives.

    Raises:
        ConfigProblems: parameters are missing, unknown, or not as they were.
    """
    values: dict[str, Any] = {}
    where, problems, known = f"MLflow run {run.run_id}", [], set()
    for name, text in run.settings().items():
        leaf = owner(name)
        known |= {leaf.key} if leaf else set()
        if name.split(".")[0] in NOT_REPEATED or any(f"{name}.".startswith(f"{key}.") for key in given):
            continue
        why = spoiled(name, text) if leaf else "which this version does not know"
        if why is None:
            read, wrong = parse_overrides([f"{name}={text}"])
            problems += [str(replace(problem, where=where)) for problem in wrong]
            for key, value in read.items():
                put(values, key.split("."), value)
        else:
            remedy = f"Give it: `{name}=VALUE`." if leaf else "Repeat the run with the version that recorded it."
            problems.append(f"a parameter must be as the run had it, got `{name}`, {why} ({where}). {remedy}")
    for key, leaf in leaves().items():
        if key in known or key.split(".")[0] in (*NOT_REPEATED, *NOT_READ) or any(owner(k) is leaf for k in given):
            continue
        default = as_argument(key, leaf.default)
        remedy = f"Give it, such as `{key}={default}`, the default of this version."
        problems.append(f"a run to repeat must have all parameters, got none called `{key}` ({where}). {remedy}")
    if problems:
        raise ConfigProblems(problems)
    return values


def repetition_warnings(start: Start, facts: Mapping[str, str], recorded: Mapping[str, str]) -> list[str]:
    """What keeps a run from the bits of the run that it repeats: other data, threads or versions, an early end.

    Args:
        start: what the new run begins with.
        facts: of its engine.
        recorded: tags of the run that is repeated.
    """
    now = run_tags(start, facts)
    names = {"engine.threads": "threads per process", "dataset.fingerprint": "data"}
    names |= {f"version.{name}": name for name in start.identity["versions"]}
    changed = [
        f"{what} {recorded[tag][:12]} -> {now.get(tag, 'unknown')[:12]}"
        for tag, what in names.items()
        if tag in recorded and recorded[tag] != now.get(tag)
    ]
    notices = []
    if early := recorded.get("sweep.stopped"):
        notices.append(f"the run that is repeated was stopped early ({early}); this one takes all of its steps")
    if not changed:
        return notices
    return [
        *notices,
        f"not all is as in the run that is repeated ({', '.join(changed)}): the same bits are not promised",
    ]
