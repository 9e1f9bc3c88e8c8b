"""The selected checkpoint of a run, evaluated again in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from difc_ray.config import Config, check_data, load_config, resolve
from difc_ray.engines.inline import InlineEngine
from difc_ray.runs.checkpoint import compare_layout
from difc_ray.runs.loop import final_jobs
from difc_ray.runs.setup import check_run_folder, expected_shapes, selected_checkpoint
from difc_ray.runs.state import checkpoint_path, model_state
from difc_ray.runs.train import Result
from difc_ray.step.evaluation import accuracies, evaluate_state
from difc_ray.step.factory import family_of, model_of
from difc_ray.step.worker import LocalStep
from difc_ray.tracking import figure_path, save_figure
from difc_ray.vectors import ParameterLayout

log = logging.getLogger("difc_ray")


def evaluate(
    run_dir: Path, overrides: Sequence[str] = (), notice: Callable[[str], None] = log.warning
) -> tuple[Config, Result]:
    """Reloads the selected checkpoint of a run and evaluates it again, in this process.

    Args:
        run_dir: a run's folder.
        overrides: `key=value` changes to the run's configuration, such as another target.
        notice: where to put one-line messages.

    Raises:
        CheckpointError: the folder holds no valid checkpoint, or one of another model.
    """
    check_run_folder(run_dir, "RUN_DIR must be a run folder", "command line")
    snapshot, messages = selected_checkpoint(run_dir)
    config = resolve(load_config(run_dir / "config.yaml", [*overrides, f"resume={run_dir}"]))
    for message in messages:
        notice(message)
    InlineEngine(config, run_dir.name, lambda: False, notice).connect()
    domains = check_data(config, family_of(config))
    model, loss = model_of(config)
    compare_layout(snapshot, expected_shapes(model, snapshot))
    state = model_state(snapshot, ParameterLayout.of(model))
    with closing(LocalStep(config, domains[config.sources[0]], model, loss)) as step:
        metrics = [evaluate_state(step, state, domains[name], split) for name, split in final_jobs(config)]
    summary = {
        "name": config.name,
        "target": config.target,
        "steps": snapshot.step,
        "selected_step": snapshot.step,
        "selection": config.selection,
        "accuracy": accuracies(metrics),
        "checkpoint": str(checkpoint_path(run_dir, snapshot.step)),
    }
    class_names = domains[config.sources[0]].class_names
    return config, Result(run_dir=run_dir, summary=summary, metrics=metrics, class_names=class_names)


def draw_confusions(result: Result) -> list[Path]:
    """Writes the confusion matrix of every domain's test examples (of the whole target) into the run's figures."""
    from difc_ray.runs.figures import confusion_figure  # imports matplotlib

    written = []
    for m in result.metrics:
        if m.split in ("test", "all"):
            path = figure_path(result.run_dir, f"evaluate_confusion_{m.domain}")
            save_figure(confusion_figure(m, result.class_names), path)
            written.append(path)
    return written
