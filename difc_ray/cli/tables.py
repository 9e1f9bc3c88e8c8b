"""Tables that commands print."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from difc_ray.config import Config, documentation
from difc_ray.domains import DATASETS
from difc_ray.run import Result

console = Console(highlight=False)


def print_banner(config: Config) -> None:
    """Two lines on what is about to run."""
    alignment = config.alignment
    penalty = (
        "no alignment" if config.objective == "erm"
        else f"{config.objective} (α {alignment.alpha:g}, β {alignment.beta:g}, {alignment.estimator})"
    )  # fmt: skip
    rule = config.harmonize.rule + (
        f" (λ {config.harmonize.lam:g})" if config.harmonize.rule.startswith("ghpp") else ""
    )
    console.print(f"[bold]{config.name}[/]  {config.dataset}: {' + '.join(config.sources)} → {config.target or 'no target'}",
                  soft_wrap=True)  # fmt: skip
    console.print(f"{config.model}, {config.steps} steps of {config.batch_size} per domain, {penalty}, {rule} between "
                  f"{config.harmonize.between}, engine {config.engine}", soft_wrap=True)  # fmt: skip


def print_result(result: Result, config: Config) -> None:
    """Accuracy by domain and split, the worst domain, and where everything lies."""
    by_place = {(m.domain, m.split): m for m in result.metrics}
    table = Table(title="accuracy", title_justify="left")
    for heading in ("domain", "role", "train", "val", "test", "all"):
        table.add_column(heading, justify="left" if heading in ("domain", "role") else "right")
    for domain in (*config.sources, *([config.target] if config.target else [])):
        role = "target (held out)" if domain == config.target else "source"
        cells = [by_place.get((domain, split)) for split in ("train", "val", "test", "all")]
        shown = ["" if m is None else f"{m.accuracy:.1%}" for m in cells]
        table.add_row(domain, role, *shown, style="bold" if domain == config.target else None)
    console.print(table)
    summary = result.summary
    if "worst_domain" in summary:
        worst = summary["worst_domain"]
        console.print(f"worst source domain  {worst['domain']} ({worst['accuracy']:.1%} on {worst['split']})")
    if "step_ms" in summary:
        ms = summary["step_ms"]
        console.print(
            f"time                 {summary['wall_s']:.0f} s; {ms['step']:.0f} ms/step = compute {ms['compute']:.0f} + "
            f"transport {ms['transport']:.0f} + coordinator {ms['coordinator']:.0f} (besides, evaluation "
            f"{ms['evaluation']:.0f}, checkpoints {ms['checkpoint']:.0f})"
        )
        console.print(f"conflicts            {summary['conflict_share']:.0%} of the steps")
    console.print(f"run                  {result.run_dir}", soft_wrap=True)
    if "checkpoint" in summary:
        console.print(f"checkpoint           {summary['checkpoint']} (step {summary['selected_step']}, "
                      f"{summary['selection']})", soft_wrap=True)  # fmt: skip
    tracking = result.tracking
    if tracking is not None:
        console.print(f"MLflow run           {tracking.run_id or 'not created yet'} in {tracking.uri}", soft_wrap=True)
        if tracking.message:
            console.print(f"[yellow]note[/] {tracking.message}", soft_wrap=True)
        console.print(f"open MLflow          {tracking.ui_command}", soft_wrap=True)


def print_keys(config: Config) -> None:
    """Every configuration key with type, default and meaning."""
    table = Table("key", "type", "default", "meaning", box=None, pad_edge=False)
    for key, kind, default, meaning in documentation():
        table.add_row(key, kind, str(default), meaning)
    console.print(table)


def print_domains(config: Config) -> None:
    """Datasets, their domains with sizes by split, and examples per class."""
    for name in DATASETS:
        options = config.dataset_options if name == config.dataset else {}
        family = DATASETS.get(name)(options, config.root if name == config.dataset else None, config.seed)
        console.print(f"[bold]{name}[/]  {family.description}", soft_wrap=True)
        table = Table("domain", "train", "val", "test", "all", "per class")
        for domain_name in family.domain_names():
            domain = family.load(domain_name)
            sizes = [domain.size(split) for split in ("train", "val", "test")]
            counts = np.sum([domain.class_counts(split) for split in ("train", "val", "test")], axis=0)
            lo, hi = int(counts.min()), int(counts.max())
            table.add_row(domain_name, *map(str, sizes), str(sum(sizes)), f"{lo}" if lo == hi else f"{lo}-{hi}")
        console.print(table)
        console.print(f"classes: {', '.join(family.class_names)}; images {'×'.join(map(str, family.image_shape))}")
