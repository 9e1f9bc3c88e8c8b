"""`difc-ray submit`: the command is looked at here, so that a mistake in it costs no queueing."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from difc_ray.cli.app import app
from difc_ray.cli.usage import checked, with_profile
from difc_ray.config import Config, ConfigProblems, flat, load_config, resolve
from difc_ray.config.overrides import parse_overrides
from difc_ray.config.problems import masked, masked_argument
from difc_ray.errors import ConfigError, DataError
from difc_ray.jobs import (
    STOP_WINDOW,
    JobRequest,
    Shipment,
    passed_variables,
    read_runtime_env,
    shipment_of,
)
from difc_ray.jobs.shipping import MANY_BYTES, PRIVATE
from difc_ray.registry import did_you_mean
from difc_ray.tracking import resolve_uri

RUNNABLE = ("compare", "config", "data", "doctor", "domains", "evaluate", "rules", "spectrum", "sync", "train", "tune")
"""Commands that make sense on a cluster."""

_SUBMISSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asks for.

    Args:
        command: words of the command, from `train` on.
        variables: names of the variables to pass on.
        working_dir: folder that the job starts in a copy of; None: this one, or what the runtime environment says.
        runtime_env: file with a runtime environment, or None.
        submission_id: name of the job, or None.
        python: how the cluster starts Python.
        with_package: whether this package travels too.
        window_s: seconds between SIGTERM and SIGKILL when the job is stopped.
        cpus, gpus: what the driver itself is to hold.
    """

    command: Sequence[str]
    variables: Sequence[str]
    working_dir: Path | None
    runtime_env: Path | None
    submission_id: str | None
    python: str
    with_package: bool
    window_s: int
    cpus: int
    gpus: int


@dataclass
class Command:
    """What could be learnt of the command without the cluster.

    Args:
        config: its configuration, if that is known here.
        metadata: what is kept with the job.
        notes: sentences for the user.
    """

    config: Config | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prepared(wish: Wish) -> tuple[JobRequest, Shipment | None, list[str]]:
    """The job, what of the working folder travels, and what the user should know.

    Raises:
        ConfigError: something about it cannot work.
    """
    environment = read_runtime_env(wish.runtime_env) if wish.runtime_env else {}
    folder = working_folder(wish, environment)
    variables = environment.get("env_vars", {}) | passed_variables(wish.variables, os.environ)
    if wish.submission_id is not None and not _SUBMISSION_ID.fullmatch(wish.submission_id):
        raise ConfigError(
            "the name of a job must have letters, digits and `._-` only, 128 at most, got "
            f"`{wish.submission_id}` (--submission-id). Write another one."
        )
    excludes = [*environment.get("excludes", []), *PRIVATE]
    shipment = None if folder is None else shipment_of(folder, tuple(excludes))
    command = looked_at(wish.command, folder or Path.cwd(), shipment)
    if shipment is not None:
        environment |= {"working_dir": str(shipment.folder), "excludes": excludes}
        command.notes += shipping_notes(shipment)
    if wish.with_package:
        environment["py_modules"] = [*environment.get("py_modules", []), str(Path(__file__).parents[1])]
    if os.environ.get("MLFLOW_TRACKING_URI") and "MLFLOW_TRACKING_URI" not in variables and records_here(command):
        command.notes.append(
            "MLFLOW_TRACKING_URI is set here, and the job does not get it: name it with `--env MLFLOW_TRACKING_URI`."
        )
    environment["env_vars"] = {STOP_WINDOW: str(wish.window_s)} | variables
    words = [*python_of(wish.python), "-m", "difc_ray", *wish.command]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", command.metadata.get("name", wish.command[0]))[:100]
    request = JobRequest(
        submission_id=wish.submission_id or f"difc-{name}-{secrets.token_hex(3)}",
        entrypoint=shlex.join(words),
        runtime_env=environment,
        metadata=command.metadata,
        cpus=wish.cpus,
        gpus=wish.gpus,
    )
    return request, shipment, command.notes


def python_of(text: str) -> list[str]:
    """The words that start Python on the cluster.

    Raises:
        ConfigError: there are none, or a quotation mark is missing.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words:
        raise ConfigError(
            f"`--python` must be a command, got `{text}` (command line). Write for example `--python python3`, or "
            "leave it out."
        )
    return words


def working_folder(wish: Wish, environment: dict[str, Any]) -> Path | None:
    """The folder that travels; None: one that the cluster fetches itself."""
    named = environment.get("working_dir")
    if named is not None and wish.working_dir is not None:
        raise ConfigError(
            f"a job has one working folder, got `{wish.working_dir}` and `{named}` (--working-dir, --runtime-env). "
            "Remove one of them."
        )
    if named is not None and "://" in str(named):
        return None
    return Path(named or wish.working_dir or ".").expanduser().absolute()


def records_here(command: Command) -> bool:
    """Whether the run would record in the store that the environment names."""
    config = command.config
    return config is not None and config.tracking.mode != "off" and not config.tracking.uri


def looked_at(words: Sequence[str], folder: Path, shipment: Shipment | None) -> Command:
    """Everything that can be wrong with a command, short of what only the cluster has.

    Args:
        words: the command, from `train` on.
        folder: where its relative paths begin.
        shipment: what of the folder travels; None: unknown.

    Raises:
        ConfigError: it is wrong.
        UsageError: its options are.
    """
    if not words:
        raise ConfigError("a job needs a command, got none (command line). Write `difc-ray submit -- train steps=100`.")
    name, *rest = words
    if name not in RUNNABLE:
        raise ConfigError(
            f"a job runs a command of difc-ray, got `{masked_argument(name)}` (command line). Write `difc-ray submit "
            f"-- train …`. {did_you_mean(name, RUNNABLE)}"
        )
    for word in words:
        if masked_argument(word) != word:
            raise ConfigError(
                "the command of a job, which everybody on the cluster can read, must not hold a secret, got "
                f"`{masked_argument(word)}` (command line). Set it on the cluster: a secret of Kubernetes, or the "
                "environment of its machines."
            )
    found = Command(metadata={"command": name})
    with inside(folder):
        given = options_of(name, rest)
        if shipment is not None and (file := given.get("config")):
            found.notes += travelling(shipment, file)
        if name == "train":
            look_at_training(found, given)
        elif name == "tune":
            look_at_sweep(found, given)
        if shipment is not None:
            found.notes += left_out(shipment, rest, found.config)
    return found


def options_of(name: str, rest: Sequence[str]) -> dict[str, Any]:
    """The command's parameters, read as it would read them."""
    command: Any = typer.main.get_command(app)
    parser = command.commands[name]
    if hasattr(parser, "commands"):
        return {}
    with parser.make_context(f"difc-ray {name}", list(rest)) as context:
        return dict(context.params)


def look_at_training(found: Command, given: dict[str, Any]) -> None:
    """Checks the settings of a run, as far as they are all here."""
    settings = with_profile(checked(given["settings"]), given["profile"])
    values, problems = parse_overrides(settings)
    if problems:
        raise ConfigProblems([str(problem) for problem in problems])
    if given["from_run"] is not None or values.get("resume") not in (None, "auto"):
        found.notes.append("the configuration is that of a run which the cluster has: it is checked there.")
        return
    config = load_config(given["config"], settings, data=False)
    learn(found, config)


def look_at_sweep(found: Command, given: dict[str, Any]) -> None:
    """Checks a search space and both ends of its ranges."""
    from difc_ray.sweeps.find import find_space
    from difc_ray.sweeps.space import read_space
    from difc_ray.sweeps.trials import check_sweep, told_keys

    settings = checked(given["settings"])
    space = read_space(find_space(given["space"]))
    config = load_config(given["config"], settings, base=dict(space.config), data=False)
    try:
        check_sweep(space, config, told_keys(settings, given["config"]))
    except DataError:
        found.notes.append("the data are not here: the settings of the trials are checked on the cluster.")
    learn(found, config)
    found.metadata["space"] = Path(given["space"]).stem


def learn(found: Command, config: Config) -> None:
    """What the configuration tells."""
    resolved = resolve(config)
    if config.tracking.uri:
        resolve_uri(config.tracking.uri, resolved.output, {})
        if masked(config.tracking.uri) != config.tracking.uri:
            found.notes.append(
                "`tracking.uri` holds a password, which travels in a file: rather set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD on the cluster."
            )
    found.config = config
    found.metadata |= {
        "name": str(config.name or f"{config.dataset}-{config.harmonize.rule}"),
        "dataset": config.dataset,
        "rule": config.harmonize.rule,
    }
    if not config.output.is_absolute() and not str(config.output).startswith("~"):
        found.notes.append(
            f"`output` is `{config.output}`, inside the copy of the working folder that Ray makes on the cluster, and "
            "removes when it needs the space: give `output=` a path on storage that stays."
        )


def travelling(shipment: Shipment, file: Path) -> list[str]:
    """What is to be said of the configuration file, which must reach the job.

    Raises:
        ConfigError: it is there and is left out.
    """
    if file.is_absolute():
        return [f"`{file}` is read on the cluster: it must be at the same place there."]
    if shipment.leaves_out(str(file)):
        raise ConfigError(
            f"the configuration file must travel with the working folder, got `{file}`, which is left out (by "
            f".gitignore, .rayignore or as it lies elsewhere than `{shipment.folder}`). Add a line `!{file}` to the "
            "ignore file, or move it."
        )
    return []


def left_out(shipment: Shipment, words: Sequence[str], config: Config | None) -> Iterator[str]:
    """A sentence for every file that the command names, that is here, and that the job will not have."""
    named = [word.partition("=")[2] or word for word in words if not word.startswith(("-", "output="))]
    if config is not None:
        named += [str(value) for key, value in flat(config).items() if key not in ("output", "name")]
        named += [f"{plugin.replace('.', '/')}.py" for plugin in config.plugins]
    for text in dict.fromkeys(named):
        if not text or len(text) > 1000 or Path(text).is_absolute() or text.startswith("~"):
            continue
        if shipment.leaves_out(text):
            yield (
                f"`{text}` is here and does not travel with the working folder (.gitignore, .rayignore, or it lies "
                "outside): the job will not have it."
            )


def shipping_notes(shipment: Shipment) -> Iterator[str]:
    """A sentence on a working folder that is rather large."""
    if shipment.total > MANY_BYTES:
        yield (
            f"the working folder has {shipment.total / 2**20:.0f} MiB: {shipment.largest()}. What the job does not "
            "need can be named in `.rayignore`."
        )


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """As the job sees it: paths begin in the folder, and so do plug-ins."""
    with chdir(folder):
        sys.path.insert(0, str(folder))
        try:
            yield
        finally:
            sys.path.remove(str(folder))
