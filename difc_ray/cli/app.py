"""The commands.

Nothing heavier than typer is imported before a command runs: ``difc-ray --help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from difc_ray import __version__
from difc_ray.cli.data import data_app
from difc_ray.cli.usage import HELP, LOOSE, ConfigFile, Settings, checked, whole_number, with_profile
from difc_ray.errors import ConfigError

app = typer.Typer(
    name="difc-ray",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)
app.add_typer(data_app, name="data")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)]


def tell_version(wanted: bool) -> bool:
    """Prints the version and ends."""
    if wanted:
        print(f"difc-ray {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train on several source domains at once: Hessian alignment and gradient harmonization on Ray.

    \b
    difc-ray train                                  the default run, on real digits
    difc-ray train steps=100 harmonize.rule=gh      settings are written key=value
    difc-ray train -c run.yaml optimizer.lr=3e-4    from a file, with a change
    difc-ray config                                 all settings
    """  # noqa: D301


@app.command(context_settings=LOOSE)
def train(
    settings: Settings = None,
    config: ConfigFile = None,
    from_run: Annotated[
        str | None, typer.Option("--from-run", metavar="RUN_ID", help="Repeat the run that MLflow holds under this id.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="N", help="Trace N steps of all actors into profile.json.")
    ] = None,
) -> None:
    """Train one run, continue one, or repeat one.

    \b
    difc-ray train sources=mnist,fonts target=mnistm steps=100
    difc-ray train engine=inline                    without Ray, in this process
    difc-ray train resume=runs/NAME steps=600       continue a run
    difc-ray train resume=auto                      continue the newest one
    difc-ray train --from-run RUN_ID                the configuration of an MLflow run again
    difc-ray train --profile 10                     where the time of ten steps goes: `profile=10`
    """  # noqa: D301
    from difc_ray.cli.tables import print_banner, print_result
    from difc_ray.cli.view import open_view
    from difc_ray.config import cautions, resolve
    from difc_ray.runs.configuration import repeated_config, requested_config
    from difc_ray.runs.train import train as run

    recorded, given = None, with_profile(checked(settings), profile)
    if from_run is None:
        requested = requested_config(config, given)
    elif config is None:
        requested, recorded = repeated_config(from_run, given)
    else:
        raise ConfigError(
            f"a run takes its configuration from one place, got --from-run and `--config {config}` (command line). "
            "Remove one of them."
        )
    resolved = resolve(requested)
    print_banner(resolved)
    if resolved.resume is not None:
        from difc_ray.cli.finished import told_again

        if told_again(resolved):
            return
    with open_view(resolved) as view:
        for caution in cautions(resolved):
            view.notice(caution)
        result = run(resolved, view, repeats=recorded.tags if recorded else None)
    print_result(result, resolved)


@app.command(context_settings=LOOSE)
def evaluate(run_dir: RunFolder, settings: Settings = None) -> None:
    """Evaluate the checkpoint of a run again.

    Prints the table of the run's end and draws the confusion matrices into RUN_DIR/figures.

    \b
    difc-ray evaluate runs/NAME
    difc-ray evaluate runs/NAME target=fonts        on another target
    """  # noqa: D301
    from difc_ray.cli.console import print_facts, print_note
    from difc_ray.cli.tables import print_result
    from difc_ray.runs.evaluate import draw_confusions
    from difc_ray.runs.evaluate import evaluate as run

    resolved, result = run(run_dir.absolute(), checked(settings), notice=print_note)
    print_result(result, resolved)
    print_facts({"confusion": [str(path) for path in draw_confusions(result)]})


@app.command("config", context_settings=LOOSE)
def show_config(
    settings: Settings = None,
    config: ConfigFile = None,
    show: Annotated[bool, typer.Option("--print", help="Print the resolved configuration as YAML.")] = False,
) -> None:
    """Check a configuration; list all settings.

    \b
    difc-ray config                                 every key with its default and meaning
    difc-ray config --print steps=100 > run.yaml    a file for `--config`
    """  # noqa: D301
    from difc_ray.cli.tables import print_keys
    from difc_ray.config import resolve, to_yaml
    from difc_ray.runs.configuration import requested_config

    requested = requested_config(config, checked(settings), paths=False)
    if show:
        sys.stdout.write(to_yaml(resolve(requested), secrets=False))
    else:
        print_keys(requested)


@app.command(context_settings=LOOSE)
def domains(settings: Settings = None, config: ConfigFile = None) -> None:
    """List datasets and their domains, or those of one dataset.

    Shows the size of every split and the examples per class. Sources and target need not be named yet.

    \b
    difc-ray domains
    difc-ray domains dataset=image_folder root=pictures
    """  # noqa: D301
    from difc_ray.cli.tables import DATASET_KEYS, print_domains
    from difc_ray.runs.configuration import requested_config

    given = checked(settings)
    alone = config is not None or any(setting.startswith("dataset=") for setting in given)
    print_domains(requested_config(config, given, paths=False, about=DATASET_KEYS), alone=alone)


@app.command(context_settings=LOOSE)
def doctor(
    settings: Settings = None,
    config: ConfigFile = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Look at every node of the cluster instead.")] = False,
) -> None:
    """Check this machine and this configuration, or the nodes of a cluster.

    Looks at versions, GPUs, shared memory, the output folder, MLflow and the start of Ray. Each line says ok, or names
    the remedy; the exit code is 4 if something is missing. With --cluster: versions, shared output, data and shared
    memory of every node, and where each domain would live.

    \b
    difc-ray doctor
    difc-ray doctor --cluster cluster.address=HOST:6379
    """  # noqa: D301
    from difc_ray.runs.configuration import requested_config

    requested = requested_config(config, checked(settings), paths=False)
    if cluster:
        from difc_ray.cli.cluster import examine_cluster

        raise typer.Exit(examine_cluster(requested))
    from difc_ray.cli.doctor import examine

    raise typer.Exit(examine(requested))


@app.command()
def rules(
    rule: Annotated[str | None, typer.Argument(metavar="RULE", hidden=True)] = None,
    check: Annotated[bool, typer.Option("--check", help="Run every rule on random Gram matrices.")] = False,
    draws: Annotated[str, typer.Option(metavar="N", help="Draws per rule with --check.")] = "200",
) -> None:
    """List the harmonization rules, show one, or check them.

    \b
    difc-ray rules                        each rule: what it does, what it guarantees, cost
    difc-ray rules upgrad                 one rule: its options with defaults, its source, and how it works
    difc-ray rules --check --draws 1000   conflicts, worst cosine, worst KKT residual, time; TorchJD beside it
    """  # noqa: D301
    from difc_ray.cli.rules import print_rule, print_rule_check, print_rules
    from difc_ray.harmonizers.catalog import rule_table
    from difc_ray.harmonizers.rule_check import check_rules

    number = whole_number("--draws", draws, 200)
    if rule is not None and check:
        raise ConfigError(f"`--check` is of all rules, got `{rule}` besides (command line). Remove one of them.")
    if rule is not None:
        print_rule(rule)
        return
    if not check:
        print_rules(rule_table())
        return
    rows = check_rules(number)
    print_rule_check(rows)
    raise typer.Exit(5 if any(row.promised_conflicts for row in rows) else 0)


@app.command(context_settings=LOOSE)
def tune(
    space: Annotated[str, typer.Argument(metavar="SPACE", hidden=True)],
    settings: Settings = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep of this space.")] = False,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Register the best model in MLflow under this name.")
    ] = None,
) -> None:
    """Search settings with Ray Tune.

    SPACE is a YAML file, or the name of one in tune_spaces/. One trial is one run, as `difc-ray train` makes it.

    \b
    difc-ray tune smoke                             a look at everything, in a few minutes
    difc-ray tune lambda_alpha_beta steps=600       settings of all trials are written key=value
    difc-ray tune smoke --resume                    after an interruption
    """  # noqa: D301
    from difc_ray.cli.tune import open_sweep_view, print_sweep, print_sweep_banner
    from difc_ray.sweeps.find import find_space
    from difc_ray.sweeps.space import read_space
    from difc_ray.sweeps.sweep import run_sweep
    from difc_ray.sweeps.trials import base_config, check_sweep, told_keys

    given = checked(settings)
    searched = read_space(find_space(space))
    base = base_config(searched, config, given)
    points = check_sweep(searched, base, told_keys(given, config))
    print_sweep_banner(searched, base, points)
    trials = len(points) or searched.samples * len(searched.seeds)
    with open_sweep_view(searched, base, trials) as view:
        result = run_sweep(searched, base, points, view, resume=resume, register=register)
    print_sweep(result, searched, base.target)
    raise typer.Exit(7 if result.failed else 0)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="SWEEP_OR_RUNS", hidden=True)],
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Rule, method or setting (#1); else `mean`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the report.")] = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs with this target.")] = None,
    uri: Annotated[str | None, typer.Option(metavar="URI", help="MLflow store of names and run ids.")] = None,
    selection: Annotated[
        str, typer.Option(metavar="RULE", help="train_domain_val, leave_one_domain_out or oracle.")
    ] = "train_domain_val",
) -> None:
    """Compare finished runs: better than the baseline, and by how much?

    Give folders of sweeps or runs, names of sweeps, or MLflow run ids. Writes a page with figures, and all numbers.

    \b
    difc-ray compare runs/SWEEP
    difc-ray compare runs/SWEEP --baseline '#3'     settings of one method, such as values of λ
    difc-ray compare runs/A runs/B runs/C --baseline mean --out report
    """  # noqa: D301
    from difc_ray.cli.compare import compare_runs

    compare_runs(runs, baseline, out, target, uri, selection)


@app.command(context_settings=LOOSE)
def reproduce(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", hidden=True)],
    settings: Settings = None,
    restarts: Annotated[str, typer.Option(metavar="N", help="Runs of every method.")] = "10",
    methods: Annotated[
        str | None, typer.Option(metavar="A,B+gh,...", help="Rows of the table; else all without a rule.")
    ] = None,
    digits: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder with torchvision's MNIST; else 5,000 digits.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the results.")] = None,
    selection: Annotated[
        str, typer.Option(metavar="RULE", help="last, or train: also what the training domains would choose.")
    ] = "last",
) -> None:
    """Run a published table again.

    EXPERIMENT is colored-mnist. Methods: erm, irm, vrex, fishr, hgp, hutchinson, hutchinson_exact, hutchinson_shared,
    gradient and hessian; and with DomainBed's defaults coral, mmd, dann_domain, mixup and group_dro. Penalties also
    with +gh or +ghpp. The same command goes on after an interruption.

    \b
    difc-ray reproduce colored-mnist
    difc-ray reproduce colored-mnist --restarts 5 --methods erm,fishr,hutchinson_exact,hutchinson_exact+gh
    difc-ray reproduce colored-mnist --digits PATH --selection train
    """  # noqa: D301
    from difc_ray.cli.reproduce import run_reproduction

    raise typer.Exit(run_reproduction(experiment, restarts, methods, digits, output, selection, checked(settings)))


@app.command()
def spectrum(
    run_dir: RunFolder,
    domains: Annotated[str | None, typer.Option(metavar="A,B", help="Domains; else the run's own.")] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Of every domain: train, val, test or all.")] = "train",
    steps: Annotated[str | None, typer.Option(metavar="N,M", help="Checkpoints; else all that are kept.")] = None,
    checkpoints: Annotated[str | None, typer.Option(metavar="N", help="So many of them, evenly spread.")] = None,
    scope: Annotated[str, typer.Option(metavar="SCOPE", help="Parameters: all, or head.")] = "all",
    top: Annotated[str, typer.Option(metavar="N", help="Largest eigenvalues to tell.")] = "5",
    probes: Annotated[str, typer.Option(metavar="M", help="Starts of the density, and probes of the trace.")] = "2",
    lanczos: Annotated[str, typer.Option(metavar="K", help="Lanczos steps from a start.")] = "20",
    examples: Annotated[str, typer.Option(metavar="N", help="Most examples of a domain, drawn by the seed.")] = "128",
    delta: Annotated[str | None, typer.Option(metavar="δ", help="Radius of the bound; else |θ| / 1000.")] = None,
    precision: Annotated[str, typer.Option(metavar="DTYPE", help="Of products: float32, float64.")] = "float32",
    seed: Annotated[str | None, typer.Option(metavar="N", help="Of all draws; else the run's.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Else RUN_DIR/spectrum.")] = None,
) -> None:
    """Measure the domains' Hessians at a run's checkpoints.

    Top eigenvalues, trace and density of each, ‖H_a − H_b‖₂ between them, and the transfer bound beside the measured
    gap, of the network in evaluation mode; it looks at the target, by design. Figures go to the run in MLflow too.

    \b
    difc-ray spectrum runs/NAME
    difc-ray spectrum runs/NAME --scope head --examples 2000
    difc-ray spectrum runs/NAME --domains mnist,fonts --checkpoints 3
    """  # noqa: D301
    from difc_ray.cli.spectrum import options_of, run_spectrum

    options = options_of(
        domains=domains, split=split, steps=steps, checkpoints=checkpoints, scope=scope, top=top, probes=probes,
        lanczos=lanczos, examples=examples, delta=delta, precision=precision, seed=seed,
    )  # fmt: skip
    run_spectrum(run_dir.absolute(), options, output)


@app.command()
def sync(
    run_dir: RunFolder,
    uri: Annotated[str | None, typer.Option(metavar="URI", help="Another MLflow store than before.")] = None,
) -> None:
    """Send MLflow what it has not received.

    \b
    difc-ray sync runs/NAME
    difc-ray sync runs/SWEEP                        a sweep and all of its trials
    difc-ray sync runs/NAME --uri http://127.0.0.1:5000
    """  # noqa: D301
    from difc_ray.cli.console import console
    from difc_ray.cli.tables import print_sync
    from difc_ray.tracking import TrackingFolder
    from difc_ray.tracking import sync as run

    if not TrackingFolder(run_dir).journal.exists():
        from difc_ray.runs.setup import check_run_folder

        check_run_folder(run_dir.absolute(), "RUN_DIR must be a run folder", "command line")
    console.print("sending ...")
    print_sync(report := run(run_dir, uri))
    raise typer.Exit(4 if report.pending else 0)
