"""`difc-ray spectrum`: options, what a person sees of a measurement, and the files that it leaves."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import console, make_table, print_facts, print_note, print_table
from difc_ray.cli.tables import print_sync
from difc_ray.cli.usage import whole_number
from difc_ray.errors import ConfigError, DifcError
from difc_ray.files import write_json
from difc_ray.registry import did_you_mean
from difc_ray.runs.checkpoint import run_lock
from difc_ray.runs.setup import check_run_folder
from difc_ray.studies.spectrum import Options, PairDistance, Spectrum, measure_run
from difc_ray.studies.spectrum.options import SPLITS, Precision, Scope
from difc_ray.tracking import add_afterwards, save_figure

FOLDER: Final = "spectrum"
"""Of the results, in the run's folder and among its artifacts in MLflow."""

RESULT: Final = "spectrum.json"
SHOWN_TOP: Final = 3
"""Eigenvalues in the table; all that were asked for are in the file."""


def options_of(
    *, domains: str | None, split: str, steps: str | None, checkpoints: str | None, scope: str, delta: str | None,
    precision: str, seed: str | None, **whole: str,
) -> Options:  # fmt: skip
    """What the options say, as they were written; None: not at all.

    Raises:
        ConfigError: one of them cannot be.
    """
    listed = None if steps is None else _listed("--steps", steps, "0,100")
    return Options(
        domains=None if domains is None else tuple(_listed("--domains", domains, "mnist,fonts")),
        split=_one_of("--split", split, SPLITS),
        steps=None if listed is None else tuple(_natural("--steps", step) for step in listed),
        checkpoints=None if checkpoints is None else whole_number("--checkpoints", checkpoints, 4),
        scope=_one_of("--scope", scope, get_args(Scope)),
        delta=None if delta is None else _length("--delta", delta),
        precision=_one_of("--precision", precision, get_args(Precision)),
        seed=None if seed is None else _natural("--seed", seed),
        **{name: whole_number(f"--{name}", text) for name, text in whole.items()},
    )


def run_spectrum(run_dir: Path, options: Options, output: Path | None) -> None:
    """Measures, prints, draws, and sends to the run in MLflow.

    Raises:
        DifcError: what the user can act on.
    """
    folder = (output or run_dir / FOLDER).expanduser().absolute()
    check_run_folder(run_dir, "RUN_DIR must be a run folder", "command line")
    check_output(folder)
    started = time.perf_counter()
    config, spectrum = measure_run(run_dir, options, print_note, lambda text: console.print(f"{escape(text)} ..."))
    seconds = time.perf_counter() - started
    files = write_files(spectrum, folder)
    print_spectrum(spectrum)
    print_facts(
        {
            "measured": told(spectrum),
            "time": f"{seconds:.0f} s",
            "numbers": str(files[0]),
            "figures": [str(path) for path in files[1:]],
        }
    )
    if config.tracking.mode == "off":
        print_facts({"MLflow": f"off; the figures are in {folder}"})
    else:
        record(run_dir, spectrum, files)


def check_output(folder: Path) -> None:
    """Refuses a folder that cannot be made or written, before anything is measured; makes nothing.

    Raises:
        ConfigError: it cannot.
    """
    try:
        standing = next(place for place in (folder, *folder.parents) if place.exists())
        writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
        why = "which may not be written" if standing.is_dir() else "which is a file"
    except OSError as error:  # below a folder that nobody may enter, or a name that is too long
        standing, writable, why = folder, False, str(error.strerror)
    if not writable:
        raise ConfigError(
            f"`--output` must be a folder that can be written, got `{standing}`, {why} (command line). Name another "
            "folder."
        )


def write_files(spectrum: Spectrum, folder: Path) -> list[Path]:
    """The numbers, then the pictures; matplotlib is imported here."""
    from difc_ray.studies.spectrum.figures import pictures

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, asdict(spectrum))
    files = [folder / RESULT]
    for name, figure in pictures(spectrum).items():
        files.append(folder / f"{name}.png")
        save_figure(figure, files[-1])
    return files


def record(run_dir: Path, spectrum: Spectrum, files: list[Path]) -> None:
    """To the run in MLflow; that it cannot be reached or written costs a note, not the result."""
    try:
        with run_lock(run_dir):
            report = add_afterwards(run_dir, spectrum.points(), files, FOLDER)
    except (DifcError, OSError) as error:
        rest = " Free some space, or make the run's folder writable." if isinstance(error, OSError) else ""
        print_note(f"the figures are not in MLflow: {' '.join(str(error).split()).rstrip('.')}.{rest}")
        return
    if report is None:
        print_note("the run has no journal for MLflow: the figures are in the folder only")
    else:
        print_sync(report)


def print_spectrum(spectrum: Spectrum) -> None:
    """Three tables: the domains at the last checkpoint, the pairs there, and the main pair over the checkpoints."""
    last = spectrum.moments[-1]
    print_table(domain_table(spectrum))
    if not last.pairs:
        return
    title = f"pairs of domains, step {last.step}, δ = {last.main.bound.delta:.3g}"
    table = make_table("pair", *PAIR_COLUMNS, title=title, right=PAIR_COLUMNS)
    for pair in last.pairs:
        table.add_row(escape(pair.name), *pair_cells(pair))
    print_table(table)
    if len(spectrum.moments) > 1:
        main = last.main
        heads = ("step", *PAIR_COLUMNS)
        over = make_table(*heads, title=f"{main.name}, over training", right=heads)
        for moment in spectrum.moments:
            over.add_row(str(moment.step), *pair_cells(moment.main))
        print_table(over)


PAIR_COLUMNS: Final = ("‖H_a−H_b‖₂", "‖g_a−g_b‖", "½δ²‖ΔH‖₂", "+ δ‖Δg‖", "gap", "gap/bound", "even gap")


def pair_cells(pair: PairDistance) -> list[str]:
    """The columns of :data:`PAIR_COLUMNS`."""
    bound = pair.bound
    share = f"{bound.gap / bound.bound:.2f}" if bound.bound > 0 else ""
    numbers = (pair.hessian, pair.gradient, bound.curvature_term, bound.bound, bound.gap)
    return [*(f"{number:.3g}" for number in numbers), share, f"{bound.even_gap:.3g}"]


def domain_table(spectrum: Spectrum) -> Table:
    """Eigenvalues and trace of every domain at the last checkpoint."""
    last = spectrum.moments[-1]
    shown = min(SHOWN_TOP, max(len(domain.top) for domain in last.domains.values()))
    tops = [f"λ{number}" for number in range(1, shown + 1)]
    right = ("examples", "loss", "‖g‖", *tops, "λ min", "trace")
    table = make_table("domain", *right, title=f"Hessian of the loss, step {last.step}", right=right)
    for name, domain in last.domains.items():
        error = "" if domain.trace_error is None else f" ± {domain.trace_error:.2g}"
        top = [f"{each.value:.4g}" for each in domain.top[:shown]]
        table.add_row(
            escape(name), str(domain.examples), f"{domain.loss:.3g}", f"{domain.gradient_norm:.3g}",
            *top, *[""] * (shown - len(top)), f"{domain.lowest.value:.3g}", f"{domain.trace:.4g}{error}",
            style="bold" if name == spectrum.target else None,
        )  # fmt: skip
    return table


def told(spectrum: Spectrum) -> str:
    """One line on what was measured."""
    asked: Mapping[str, Any] = spectrum.options
    scope = "all" if asked["scope"] == "all" else "the head's"
    return (
        f"{scope} {spectrum.parameters:,} parameters in evaluation mode, split {asked['split']}, {asked['lanczos']} "
        f"Lanczos steps from {asked['probes']} start(s), {asked['precision']}, seed {asked['seed']}, "
        f"{spectrum.threads} thread(s)"
    )


def _listed(option: str, text: str, example: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ConfigError(
            f"`{option}` must be a list with commas, got `{text}` (command line). Write for example `{option} "
            f"{example}`."
        )
    return found


def _one_of(option: str, text: str, known: tuple[Any, ...]) -> Any:
    if text not in known:
        raise ConfigError(
            f"`{option}` must be one of {', '.join(known)}, got `{text}` (command line). {did_you_mean(text, known)}"
        )
    return text


def _natural(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ConfigError(
            f"`{option}` must be made of integers >= 0, got `{text}` (command line). Write for example `{option} 100`."
        )
    return int(text)


def _length(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"`{option}` must be a number > 0, got `{text}` (command line). Write for example `{option} 0.01`, or "
            "leave it out for a thousandth of the length of θ."
        )
    return value
