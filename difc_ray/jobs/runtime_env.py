"""What a job runs in: a file of Ray's, variables by name, and nothing that should stay secret.

Ray keeps the runtime environment in clear text: in its store, in its logs, in the answer of its jobs API and in the
environment of every process of the job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

from difc_ray.config.problems import SECRET_KEY, ConfigProblems, Problem, masked
from difc_ray.config.yaml_strict import Document, UnreadableError, read_file
from difc_ray.registry import did_you_mean

STOP_WINDOW = "RAY_JOB_STOP_WAIT_TIME_S"
"""How long Ray waits between SIGTERM and SIGKILL; its supervisor reads it in the job's own environment. Default: 3."""

_HARMLESS = frozenset({"TOKENIZERS_PARALLELISM"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REMEDY = "Set it on the cluster: a secret of Kubernetes, or the environment of its machines."


def read_runtime_env(file: Path) -> dict[str, Any]:
    """A runtime environment in a YAML file, without what Ray would silently ignore.

    Raises:
        ConfigProblems: keys that Ray does not know, values of the wrong type, or secrets.
    """
    try:
        document = read_file(file)
    except UnreadableError as error:
        text = str(error.problem).replace("config file", "runtime environment")
        raise ConfigProblems([text.replace("--config", "--runtime-env")]) from None
    problems = [*document.problems, *_unknown_keys(document, file), *_wrong_kinds(document, file)]
    problems += _not_text(document, file)
    problems += secrets_in(document.data, str(file))
    if problems:
        raise ConfigProblems([str(problem) for problem in problems])
    return document.data


def _unknown_keys(document: Document, file: Path) -> Iterator[Problem]:
    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")} | {"nsight", "rocprof_sys"}
    options = set(RuntimeEnvConfig.known_fields)
    inner = document.data.get("config")
    levels: list[tuple[str, Mapping[str, Any], set[str], tuple[str, ...]]] = [
        ("a runtime environment", document.data, known, ())
    ]
    levels += [("its section `config`", inner, options, ("config",))] if isinstance(inner, Mapping) else []
    for what, values, names, path in levels:
        for key in values:
            if key not in names:
                where, remedy = _line(document, file, *path, key), did_you_mean(str(key), names)
                yield Problem(what=f"unknown key of {what}", got=f"`{key}`", where=where, remedy=remedy)


def _wrong_kinds(document: Document, file: Path) -> Iterator[Problem]:
    """Of the keys that we read ourselves; Ray looks at the others."""
    for key, kind in (("working_dir", "text"), ("excludes", "a list of texts"), ("py_modules", "a list of texts")):
        value = document.data.get(key, "" if kind == "text" else [])
        texts = [value] if kind == "text" else value
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            example = "`working_dir: .`" if kind == "text" else f"`{key}: [NAME]`"
            yield Problem(what=f"`{key}` must be {kind}", got=type(value).__name__, where=_line(document, file, key),
                          remedy=f"Write {example}.")  # fmt: skip


def _not_text(document: Document, file: Path) -> Iterator[Problem]:
    values = document.data.get("env_vars", {})
    if not isinstance(values, Mapping):
        where, remedy = _line(document, file, "env_vars"), "Write `NAME: VALUE`, indented below it."
        yield Problem(what="`env_vars` must be a mapping", got="something else", where=where, remedy=remedy)
        return
    for name, value in values.items():
        if not isinstance(value, str):
            what, where = f"`env_vars.{name}` must be text", _line(document, file, "env_vars", name)
            yield Problem(what=what, got=type(value).__name__, where=where, remedy="Quote it.")


def _line(document: Document, file: Path, *path: str) -> str:
    return f"{file}, line {document.lines.get(path, 1)}"


def passed_variables(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that `--env` names, with their values here.

    Raises:
        ConfigProblems: a name that is not set, sounds like a secret, or is no name.
    """
    problems, found = [], {}
    for name in names:
        if "=" in name or not _NAME.fullmatch(name):
            got, what = f"`{name.partition('=')[0]}=…`" if "=" in name else f"`{name}`", "`--env` must name a variable"
            remedy = "Write `--env NAME`; its value is taken from here."
            problems.append(Problem(what=what, got=got, where="--env", remedy=remedy))
        elif _sounds_secret(name):
            problems.append(_secret(f"`{name}`", "--env"))
        elif name not in environ:
            remedy = f"Set it with `export {name}=…`, or take the option away."
            problems.append(Problem(what="`--env` must name a variable that is set here", got=f"`{name}`",
                                    where="--env", remedy=remedy))  # fmt: skip
        elif masked(environ[name]) != environ[name]:
            problems.append(_secret(f"`{name}`, which holds `{masked(environ[name])}`", "--env"))
        else:
            found[name] = environ[name]
    if problems:
        raise ConfigProblems([str(problem) for problem in problems])
    return found


def secrets_in(runtime_env: Mapping[str, Any], where: str) -> list[Problem]:
    """One problem for every variable, or text, that Ray would show to all who can see the job."""
    variables = runtime_env.get("env_vars")
    named = [str(name) for name in variables if _sounds_secret(str(name))] if isinstance(variables, Mapping) else []
    found = [_secret(f"`{name}`", where) for name in named]
    rest = {key: value for key, value in runtime_env.items() if key != "env_vars"}
    others = [text for name, text in _texts(variables or {}) if name not in named]
    others += [text for _, text in _texts(rest)]
    return found + [_secret(f"`{masked(text)}`", where) for text in others if masked(text) != text]


def _secret(got: str, where: str) -> Problem:
    what = "a job's environment, which everybody on the cluster can read, must not hold a secret"
    return Problem(what=what, got=got, where=where, remedy=_REMEDY)


def _sounds_secret(name: str) -> bool:
    return name not in _HARMLESS and SECRET_KEY.search(name) is not None


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside, with the key it stands under."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)
