"""What is looked at outside the configuration before a run starts: its folders and the size of its domains."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from difc_ray.config.checks import Where, origin_by_value
from difc_ray.config.keys import Config
from difc_ray.config.problems import DataProblems, Problem, show
from difc_ray.data import (
    AugmentationError,
    DatasetFamily,
    Domain,
    make_augmentation,
    open_domain,
    open_family,
)
from difc_ray.errors import ConfigError, DataError
from difc_ray.models import absolute_model_options, build_model, check_weights, named_weights
from difc_ray.objectives.losses import LOSSES
from difc_ray.options import absolute

PROBE_BYTES = 1_000_000
"""What is written, and removed, to learn whether a folder takes it."""


SHOWN_CLASSES = 20
"""Names of classes that a sentence lists."""


def check_paths(config: Config) -> list[str]:
    """Whether a new run can write where it is to, and has its data folder; one sentence per problem.

    A file without a name is written and removed; no folder is made.
    """
    return [str(problem) for problem in path_problems(config, lambda key: origin_by_value(config, key))]


def path_problems(config: Config, where: Where, *, new: bool = True) -> list[Problem]:
    """The problems of :func:`check_paths`, with where each path was given; the run's folder may be there if not new."""
    weights = _weights_problems(config, where) if config.resume is None else []  # a run that goes on has its own
    return [*_root_problems(config, where), *weights, *_output_problems(config, where, new)]


def check_data(config: Config, family: DatasetFamily) -> dict[str, Domain]:
    """Loads what a run looks at, and checks that every source has a batch to train on and a validation example.

    Args:
        config: the configuration.
        family: its dataset.

    Returns:
        The domains by name: the sources in their order, then the target if there is one, then those that are observed.

    Raises:
        DataProblems: with one sentence for everything that is wrong with a domain.
    """
    domains: dict[str, Domain] = {}
    problems: list[str] = []
    for name in dict.fromkeys((*config.sources, *([] if config.target is None else [config.target]), *config.observe)):
        try:
            domains[name] = open_domain(config.dataset, family, name)
        except DataError as error:
            problems.append(str(error))
            continue
        found = _source_problems if name in config.sources else _target_problems
        problems += [str(problem) for problem in found(config, domains[name])]
    if not problems and config.target is not None:
        problems += [str(problem) for problem in strange_classes(config, domains)]
    if problems:
        raise DataProblems(problems)
    return domains


def _source_problems(config: Config, domain: Domain) -> Iterator[Problem]:
    train, where = domain.size("train"), f"dataset `{config.dataset}`"
    if train < config.batch_size:
        what = f"domain `{domain.name}` must have at least `batch_size = {config.batch_size}` training examples"
        remedy = f"Write `batch_size={train}` or less, or take it out of `sources`."
        remedy = remedy if train else "Add examples, or take it out of `sources`."
        yield Problem(what=what, got=str(train), where=where, remedy=remedy)
    if train and (problem := _augmentation_problem(config, domain)):
        yield problem
    if domain.size("val") == 0:
        what = f"domain `{domain.name}` must have validation examples"
        yield Problem(what=what, got="0", where=where, remedy="Add examples, or take it out of `sources`.")


def _augmentation_problem(config: Config, domain: Domain) -> Problem | None:
    """Whether the pipeline suits the domain, tried on its first training picture."""
    augmentation = make_augmentation(config.augment, domain.image_shape)
    if augmentation is None:
        return None
    try:
        domain.drawn_augmented(domain.split_indices("train")[:1], augmentation, config.seed, 0)
    except AugmentationError as error:
        return Problem(what=error.what, got=error.got, where=error.where, remedy=error.remedy, keys=("augment",))
    return None


def _target_problems(config: Config, domain: Domain) -> Iterator[Problem]:
    if domain.size("all") == 0:
        role = "target" if domain.name == config.target else "observed"
        what, where = f"{role} domain `{domain.name}` must have examples", f"dataset `{config.dataset}`"
        yield Problem(what=what, got="0", where=where, remedy="Add examples, or name another target.")


def strange_classes(config: Config, domains: Mapping[str, Domain]) -> Iterator[Problem]:
    """Classes of the target that no source has an example of: nothing can learn them."""
    target = domains[str(config.target)]
    seen = np.sum([domains[name].class_counts("all") for name in config.sources], axis=0)
    strange = [
        name for name, here, there in zip(target.class_names, target.class_counts("all"), seen, strict=True)
        if here and not there
    ]  # fmt: skip
    if strange:
        what = f"every class of target domain `{config.target}` must have examples in a source"
        names = ", ".join(f"`{name}`" for name in strange[:SHOWN_CLASSES])
        more = f" and {len(strange) - SHOWN_CLASSES} more" if len(strange) > SHOWN_CLASSES else ""
        remedy = "Add a source that has them, or take them out of the target."
        yield Problem(what=what, got=f"none of {names}{more}", where=f"dataset `{config.dataset}`", remedy=remedy)


def _root_problems(config: Config, where: Where) -> list[Problem]:
    """The folder must be there, unless it is yet to be filled by a download."""
    if config.root is None or absolute(config.root).is_dir():
        return []
    if config.dataset_options.get("download") is True and not absolute(config.root).exists():
        return []
    got = f"`{config.root}`, " + ("a file" if absolute(config.root).exists() else "which does not exist")
    remedy = "Correct the path of the dataset's files."
    what = "`root` must be a folder"
    return [Problem(what=what, got=got, where=where("root"), remedy=remedy, keys=("root",), data=True)]


def _weights_problems(config: Config, where: Where) -> list[Problem]:
    """Whether the file of initial weights is there and of the model; its tensors are not read."""
    named = named_weights(config.model_options)
    if named is None:
        return []
    try:
        options = absolute_model_options(config.model, config.model_options)
        data, seed = config.dataset_options, config.seed
        family = open_family(config.dataset, data, config.root, seed, config.image_size, config.on_bad_image)
        n_outputs = LOSSES.get(config.loss)().n_outputs(len(family.class_names))
        with torch.device("meta"):
            model = build_model(config.model, family.image_shape, n_outputs, options, seed)
    except Exception:  # told by the checks of the configuration, or when the model is made
        return []
    try:
        check_weights(config.model, model, options)
    except ConfigError as error:
        what, keys = f"`model_options.weights` must suit model `{config.model}`", ("model_options", "model")
        got = show(named).removeprefix("the text ")
        return [Problem(what=what, got=got, where=where("model_options"), remedy=str(error), keys=keys)]
    return []


def _output_problems(config: Config, where: Where, new: bool) -> list[Problem]:
    output = absolute(config.output)

    def problem(what: str, got: str, remedy: str, *keys: str) -> list[Problem]:
        origins = "; ".join(dict.fromkeys(where(key) for key in keys))
        return [Problem(what=what, got=got, where=origins, remedy=remedy, keys=keys)]

    standing = next(folder for folder in (output, *output.parents) if folder.exists() or folder.is_symlink())
    if not standing.is_dir():
        what, got = "`output` must be a folder, or a path where one can be made", f"`{standing}`, a file"
        return problem(what, got, "Name another folder.", "output")
    try:
        _probe(standing)
    except OSError as error:
        got = f"`{output}`: {error.strerror or error}"
        return problem(
            "`output` must be writable", got, "Name another folder, or free space and permissions.", "output"
        )
    if config.name is None or config.resume is not None or not new:
        return []
    run = output / config.name
    if run.is_symlink() or run.is_file() or (run.is_dir() and any(run.iterdir())):
        remedy = f"Continue it with `resume={run}`, or choose another `name` (none for a unique one)."
        return problem("the run folder must be new", f"`{run}`, which holds another run", remedy, "name", "output")
    return []


def _probe(folder: Path) -> None:
    """Writes and removes a file without a name.

    Raises:
        OSError: the folder does not take it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * PROBE_BYTES)
        file.flush()
