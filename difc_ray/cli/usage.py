"""What all commands take, and wrong commands, options and settings in the form of all our errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from difc_ray.errors import ConfigError
from difc_ray.registry import did_you_mean

HELP = {"help_option_names": ["-h", "--help"]}

LOOSE = {"ignore_unknown_options": True}
"""Unknown options become arguments, so that ``--steps 100`` is answered with ``steps=100``."""

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML configuration file.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", hidden=True)]

OPTIONS = ("--cluster", "--config", "--from-run", "--help", "--print", "--profile", "--version")
"""Options that a misspelt setting is compared with."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What every wrong option or command raises; it belongs to click in some versions of typer, to typer in others."""


def usage_sentence(error: Any, commands: Sequence[str]) -> str:
    """A wrong command or option (what :data:`UsageError` names) in our form."""
    text = " ".join(error.format_message().split())
    quoted = re.search(r"'([^']*)'", text)
    named = quoted[1] if quoted else text
    where = error.ctx.command_path if error.ctx else "difc-ray"
    remedy = f"See `{where} --help`; settings are written `key=value`."
    if "No such command" in text:
        commands = list(getattr(error.ctx.command, "commands", commands)) if error.ctx else commands
        if "=" in named:
            return f"a command must come first, got `{named}` (command line). Write `difc-ray train {named}`."
        return f"unknown command, got `{named}` (command line). {did_you_mean(named, commands)}"
    if "Missing argument" in text:
        example = {"SPACE": "smoke", "KEY=VALUE": "steps=100", "EXPERIMENT": "colored-mnist"}.get(
            named.strip("[].…{}"), "runs/NAME"
        )
        return f"`{where}` needs an argument, got none (command line). Write `{where} {named}`, such as `{example}`."
    if match := re.search(r"No such option:? '?(-[^\s'.]+)", text):
        return f"unknown option, got `{match[1]}` (command line). {remedy}"
    if match := re.search(r"Option '([^']+)' requires an argument", text):
        return f"option `{match[1]}` needs a value, got none (command line). {remedy}"
    return f"the command line must be understood, got this: {text.rstrip('.')} (command line). {remedy}"


def whole_number(option: str, text: str, example: int = 1) -> int:
    """The value of an option that counts something.

    Args:
        option: its name, with dashes.
        text: what the user wrote.
        example: a value that would be right.

    Raises:
        ConfigError: it is no integer from 1 on.
    """
    if not (text.isascii() and text.isdigit() and int(text[:18]) >= 1 and len(text) <= 18):
        raise ConfigError(
            f"`{option}` must be an integer >= 1, got {text or 'nothing'} (command line). Write for example "
            f"`{option} {example}`."
        )
    return int(text)


def with_profile(settings: list[str], wanted: str | None) -> list[str]:
    """The settings with what `--profile N` is short for.

    Raises:
        ConfigError: N is no integer from 1 on, or the settings have a `profile` of their own.
    """
    if wanted is None:
        return settings
    steps = whole_number("--profile", wanted, example=10)
    if own := next((argument for argument in settings if argument.startswith("profile=")), None):
        raise ConfigError(
            f"the steps to trace are given once, got `--profile {steps}` and `{own}` (command line). Remove one of "
            "them."
        )
    return [*settings, f"profile={steps}"]


def _closer_to_a_key(name: str, option: str) -> bool:
    """Whether a name is, or resembles, a key of the configuration at least as much as an option."""
    from difc_ray.config import Config

    def alike(other: str) -> float:
        return difflib.SequenceMatcher(None, name.partition(".")[0], other).ratio()

    return max(map(alike, Config.model_fields)) >= alike(option)


def checked(settings: Sequence[str] | None) -> list[str]:
    """The settings, if none of them is a misspelt option.

    Raises:
        ConfigError: one is.
    """
    for argument in settings or ():
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0.7)
        if near and not _closer_to_a_key(name, near[0]):
            wrong = "unknown option" if near[0] != name else "this option is in the wrong place"
            remedy = f"Did you mean `{near[0]}`?" if near[0] != name else "See `difc-ray --help`."
            raise ConfigError(f"{wrong}, got `{name}` (command line). {remedy}")
    return list(settings or ())
