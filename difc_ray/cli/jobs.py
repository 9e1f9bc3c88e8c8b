"""`difc-ray submit` and `difc-ray jobs`: runs on a cluster.

Nothing heavier than typer is imported before a command runs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from difc_ray.cli.usage import whole_number
from difc_ray.errors import Interrupted

if TYPE_CHECKING:
    from difc_ray.cli.submitting import Wish
    from difc_ray.jobs import JobInfo, Jobs

HELP = {"help_option_names": ["-h", "--help"]}
WORDS = {**HELP, "allow_interspersed_args": False}
"""What comes after the first word belongs to the command that is submitted."""

jobs_app = typer.Typer(help="List, read and stop jobs.", rich_markup_mode=None, context_settings=HELP)

AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Dashboard of the cluster; else RAY_API_SERVER_ADDRESS."),
]
Passed = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME", help="Pass a variable on, with its value here.")
]
WorkingDir = Annotated[
    Path | None, typer.Option("--working-dir", metavar="DIR", help="Folder that travels; else this one.")
]
RuntimeEnvFile = Annotated[
    Path | None, typer.Option("--runtime-env", metavar="FILE", help="Ray's runtime environment, in YAML.")
]
NewName = Annotated[
    str | None, typer.Option("--submission-id", metavar="NAME", help="Name of the job; else a new one.")
]
Held = Annotated[str | None, typer.Option(metavar="N", help="What the driver itself holds, then on any node.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", hidden=True)]


@jobs_app.callback()
def top() -> None:
    """List, read and stop jobs."""


def submit(
    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND", hidden=True)] = None,
    address: AddressOption = None,
    env: Passed = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job; exit with its code.")] = True,
    working_dir: WorkingDir = None,
    runtime_env: RuntimeEnvFile = None,
    submission_id: NewName = None,
    python: Annotated[str, typer.Option("--python", metavar="COMMAND", help="Python on the cluster.")] = "python",
    with_package: Annotated[
        bool, typer.Option("--with-package", help="Send difc_ray too; what it needs must be there.")
    ] = False,
    stop_window: Annotated[
        str, typer.Option("--stop-window", metavar="SECONDS", help="What a job has to end when it is stopped.")
    ] = "60",
    entrypoint_num_cpus: Held = None,
    entrypoint_num_gpus: Held = None,
) -> None:
    """Run a command on a Ray cluster, as a job.

    The settings are checked here first. The current folder travels, without what .gitignore and .rayignore name.

    \b
    difc-ray submit --address http://127.0.0.1:8265 -- train steps=100 output=/shared/runs
    difc-ray submit --env MLFLOW_TRACKING_URI --no-wait -- train --config run.yaml
    difc-ray submit -- tune smoke output=/shared/runs
    """  # noqa: D301
    from difc_ray.cli.submitting import Wish

    wish = Wish(
        command=command or [],
        variables=env or [],
        working_dir=working_dir,
        runtime_env=runtime_env,
        submission_id=submission_id,
        python=python,
        with_package=with_package,
        window_s=whole_number("--stop-window", stop_window, 60),
        cpus=whole_number("--entrypoint-num-cpus", entrypoint_num_cpus) if entrypoint_num_cpus else 0,
        gpus=whole_number("--entrypoint-num-gpus", entrypoint_num_gpus) if entrypoint_num_gpus else 0,
    )
    submit_wish(wish, address, wait=wait)


def submit_wish(wish: Wish, address: str | None, *, wait: bool) -> None:
    """Checks, submits, says how to find the job, and follows it if that is wanted.

    Raises:
        typer.Exit: the job has ended; with its exit code.
    """
    from difc_ray.cli.submitting import prepared
    from difc_ray.cli.tables import print_facts, print_note

    request, shipment, notes = prepared(wish)
    jobs = reached(address)
    for note in notes:
        print_note(note)
    name, option = request.submission_id, jobs.address.option
    try:
        jobs.submit(request, print_note)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped while job `{name}` was being submitted: `difc-ray jobs list{option}` tells whether it was.",
            signal.SIGINT,
        ) from None
    facts = {"job": name, "cluster": jobs.address.shown, "command": request.entrypoint}
    if shipment is not None:
        facts["folder"] = f"{shipment.folder}: {len(shipment.sizes)} files, {shipment.total / 2**20:.1f} MiB"
    print_facts(facts)
    print_facts({"logs": f"difc-ray jobs logs {name} --follow{option}", "stop": f"difc-ray jobs stop {name}{option}"})
    if wait:
        from difc_ray.jobs import follow

        end(jobs, detachable(jobs, name, lambda: follow(jobs, name, write, print_note, request)))


@jobs_app.command("list")
def show_jobs(address: AddressOption = None) -> None:
    """List the jobs of a cluster, the newest first."""
    from rich.markup import escape
    from rich.table import Table

    from difc_ray.cli.tables import console, print_table

    found = reached(address).all()
    if not found:
        console.print("no jobs")
        return
    table = Table()
    for title in ("job", "status", "started", "took", "run", "command"):
        table.add_column(title, justify="right" if title == "took" else "left")
    for job in found:
        run = " ".join(job.metadata.get(key, "") for key in ("name", "space")).strip()
        began = "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        took = "" if job.started is None else f"{(job.ended or time.time()) - job.started:.0f} s"
        status = job.status if job.exit_code in (None, 0) else f"{job.status} ({job.exit_code})"
        table.add_row(*map(escape, (job.submission_id, status, began, took, run, job.entrypoint)))
    print_table(table)


@jobs_app.command()
def logs(
    job: JobId,
    address: AddressOption = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has printed."""
    from difc_ray.cli.tables import print_note
    from difc_ray.jobs import follow

    jobs = reached(address)
    if not following:
        jobs.info(job)
        write(jobs.log(job))
        return
    end(jobs, detachable(jobs, job, lambda: follow(jobs, job, write, print_note)))


@jobs_app.command()
def stop(
    job: JobId,
    address: AddressOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
) -> None:
    """Stop a job.

    A run writes its checkpoint and closes its MLflow run before it ends; `resume=` goes on from there.
    """
    from difc_ray.cli.tables import print_facts
    from difc_ray.jobs import stop as ask

    jobs = reached(address)
    info, ran = ask(jobs, job, wait=wait)
    if not ran:
        print_facts({"job": job, "status": f"{info.status}; it had ended before"})
        return
    pending = "PENDING; it ends as soon as it starts, or when Ray gives up waiting for that, by default after 15 min"
    print_facts({"job": job, "status": {"PENDING": pending, "RUNNING": "asked to stop"}.get(info.status, info.status)})
    if info.over:
        said = [line for line in jobs.log(job).splitlines() if line.startswith("difc-ray: ")]
        print_facts({"it said": said[-1:]})


def reached(address: str | None) -> Jobs:
    """The cluster's jobs.

    Raises:
        ConfigError, ClusterError: there is no such cluster, or it does not let us in.
    """
    from difc_ray.jobs import Jobs, api_address

    return Jobs(api_address(address, os.environ))


def write(text: str) -> None:
    """A job's words, as they are."""
    sys.stdout.write(text)
    sys.stdout.flush()


def detachable(jobs: Jobs, name: str, followed: Callable[[], JobInfo]) -> JobInfo:
    """Follows a job until it ends, or somebody presses Ctrl-C.

    Raises:
        Interrupted: that was pressed; the job goes on.
    """
    try:
        return followed()
    except KeyboardInterrupt:
        option = jobs.address.option
        raise Interrupted(
            f"No longer following; job `{name}` goes on. `difc-ray jobs logs {name} --follow{option}` follows it "
            f"again, `difc-ray jobs stop {name}{option}` stops it.",
            signal.SIGINT,
        ) from None


def end(jobs: Jobs, info: JobInfo) -> NoReturn:
    """Says how a job ended, and leaves with its exit code."""
    from difc_ray.cli.tables import print_facts
    from difc_ray.jobs import exit_code

    code = exit_code(info)
    facts = {"job": info.submission_id, "status": info.status + (f" ({code})" if code else "")}
    if info.status == "FAILED" and info.exit_code is None:  # no command of ours has said why
        facts["Ray says"] = " ".join(info.message.split())[:1000]
    print_facts(facts)
    raise typer.Exit(code)
