"""Runs a command line: every error becomes one sentence and the exit code of its kind."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from difc_ray.cli.app import app
from difc_ray.cli.usage import UsageError, usage_sentence
from difc_ray.errors import DifcError, Interrupted


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with the exit code of the error's kind (:mod:`difc_ray.errors`)."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # plug-ins lie beside the user, also for the installed script
    sys.exit(execute(list(sys.argv[1:] if arguments is None else arguments)))


def execute(arguments: list[str]) -> int:
    """Runs a command line and returns its exit code."""
    command = typer.main.get_command(app)
    if not (logger := logging.getLogger("difc_ray")).handlers:
        logger.addHandler(logging.NullHandler())  # warnings are shown as notes, once
    try:
        with command.make_context("difc-ray", arguments or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as leave:
        return leave.exit_code
    except BrokenPipeError:
        from difc_ray.cli.console import let_go_of_stdout

        let_go_of_stdout()
        return 0
    except Interrupted as interruption:
        print(f"difc-ray: {interruption}", file=sys.stderr)
        return interruption.code
    except KeyboardInterrupt:
        more = " What has a checkpoint can be continued: `resume=auto`." if arguments[:1] == ["train"] else ""
        print(f"difc-ray: Stopped.{more}", file=sys.stderr)
        return 130
    except DifcError as error:
        complain(getattr(error, "problems", [str(error)]))
        return error.exit_code
    except UsageError as error:
        complain([usage_sentence(error, list(getattr(command, "commands", ())))])
        return 2
    except Exception as error:
        complain([unexpected(error)])
        return 1


def complain(problems: Sequence[str]) -> None:
    """One line per problem on standard error."""
    for problem in problems:
        print(f"difc-ray: error: {' '.join(problem.split())}", file=sys.stderr)


def unexpected(error: Exception) -> str:
    """The sentence on an error that nobody foresaw; its traceback goes to the run's log, or to standard error."""
    cause = getattr(error, "cause", None) or error  # Ray carries the error of a process in one of its own
    words = " ".join(str(cause).split()) or "no message"
    log = next((note for note in getattr(error, "__notes__", ()) if note.endswith("run.log")), None)
    if log is None:
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    shown = words if len(words) <= 300 else words[:297] + "..."
    return (
        f"unexpected error, got {type(cause).__name__}: {shown} ({where}). "
        f"The traceback is {f'in `{log}`' if log else 'above'}; if no plug-in of yours is in it, please report it."
    )
