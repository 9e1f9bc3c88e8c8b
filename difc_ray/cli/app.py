"""Commands, and how errors become one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from difc_ray.errors import DifcError, Interrupted
from difc_ray.registry import did_you_mean

app = typer.Typer(
    name="difc-ray",
    help="Train on several source domains at once: Hessian alignment and gradient harmonization on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML configuration file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes, such as `steps=100 harmonize.rule=gh`.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder, such as runs/NAME.")]


@app.command()
def train(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Train one run; `resume=RUN_DIR` or `resume=auto` continues one."""
    from difc_ray.cli.tables import print_banner, print_result
    from difc_ray.cli.view import open_view
    from difc_ray.config import cautions, resolve
    from difc_ray.preparation import requested_config
    from difc_ray.run import train as run

    resolved = resolve(requested_config(config, overrides or []))
    print_banner(resolved)
    with open_view(resolved) as view:
        for caution in cautions(resolved):
            view.notice(caution)
        result = run(resolved, view)
    print_result(result, resolved)


@app.command()
def evaluate(run_dir: RunFolder, overrides: Overrides = None) -> None:
    """Reload the selected checkpoint of a run, print its table again and draw the confusion matrices."""
    from difc_ray.cli.tables import console, print_result
    from difc_ray.run import draw_confusions
    from difc_ray.run import evaluate as run

    config, result = run(run_dir, overrides or [], notice=lambda text: console.print(f"[yellow]note[/] {text}"))
    print_result(result, config)
    for path in draw_confusions(result):
        console.print(f"confusion matrix  {path}", soft_wrap=True)


@app.command("config")
def show_config(
    overrides: Overrides = None,
    config: ConfigFile = None,
    show: Annotated[bool, typer.Option("--print", help="Print the resolved configuration as YAML.")] = False,
) -> None:
    """Check a configuration; list every key with its default, or print the resolved tree."""
    from difc_ray.cli.tables import print_keys
    from difc_ray.config import resolve, to_yaml
    from difc_ray.preparation import requested_config

    checked = requested_config(config, overrides or [], paths=False)
    if show:
        sys.stdout.write(to_yaml(resolve(checked), secrets=False))
    else:
        print_keys(checked)


@app.command()
def domains(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """List the datasets, their domains, sizes and class counts."""
    from difc_ray.cli.tables import print_domains
    from difc_ray.preparation import requested_config

    print_domains(requested_config(config, overrides or [], paths=False))


@app.command()
def doctor(overrides: Overrides = None, config: ConfigFile = None) -> None:
    """Check versions, Ray, GPUs, MLflow, shared memory and the output folder; each line is ok or names the remedy."""
    from difc_ray.cli.doctor import examine
    from difc_ray.preparation import requested_config

    raise typer.Exit(examine(requested_config(config, overrides or [], paths=False)))


@app.command()
def sync(run_dir: RunFolder, uri: Annotated[str | None, typer.Option(help="Another tracking URI.")] = None) -> None:
    """Send what a run recorded and MLflow has not yet received."""
    from difc_ray.cli.tables import console
    from difc_ray.tracking import sync as run

    console.print(run(run_dir, uri), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with the exit code of DESIGN, contracts."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # plug-ins lie beside the user, also for the installed script
    sys.exit(execute(list(sys.argv[1:] if arguments is None else arguments)))


def execute(arguments: list[str]) -> int:
    """Runs a command line and returns its exit code."""
    try:
        code: Any = app(args=arguments, prog_name="difc-ray", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Interrupted as interruption:
        complain([str(interruption)])
        return interruption.code
    except DifcError as error:
        complain(getattr(error, "problems", [str(error)]))
        return error.exit_code
    except click.UsageError as error:
        complain([usage_sentence(error)])
        return 2
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain(["Stopped by a second signal; the newest checkpoint can be resumed with `resume=auto`."])
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, as with `| head`
        return 0


def complain(problems: Sequence[str]) -> None:
    """One line per problem on standard error."""
    for problem in problems:
        print(f"difc-ray: error: {problem}", file=sys.stderr)


def usage_sentence(error: click.UsageError) -> str:
    """A wrong command or option in our form."""
    commands = [
        str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback
    ]
    text = error.format_message()
    if "No such command" in text:
        name = text.split("'")[1]
        return f"unknown command, got `{name}` (command line). {did_you_mean(name, commands)}"
    where = error.ctx.command_path if error.ctx else "difc-ray"
    return f"{text.rstrip('.')} (command line). See `{where} --help`; settings are written `key=value`."
