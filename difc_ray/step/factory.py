"""What a configuration names, made: objective, loss, dataset, batches, model."""

from __future__ import annotations

import numpy as np
import torch

from difc_ray.config import Config, objective_name, objective_settings
from difc_ray.data import (
    BalancedOrder,
    DatasetFamily,
    Domain,
    Loader,
    class_shares,
    make_augmentation,
    open_domain,
    open_family,
)
from difc_ray.determinism import derive_seed
from difc_ray.models import Model, build_model
from difc_ray.objectives import OBJECTIVES, Objective
from difc_ray.objectives.losses import LOSSES, Loss
from difc_ray.step.division import is_divided


def objective_of(config: Config) -> Objective:
    """The objective of a resolved configuration, with its options."""
    settings = objective_settings(config, divided=is_divided(config))
    return OBJECTIVES.get(config.objective)(settings, config.alignment.options)


def loss_of(config: Config) -> Loss:
    """The configured loss, with its options."""
    return LOSSES.get(config.loss)(config.loss_options)


def family_of(config: Config) -> DatasetFamily:
    """The configured dataset."""
    return open_family(
        config.dataset, config.dataset_options, config.root, config.seed, config.image_size, config.on_bad_image
    )


def load_domain(config: Config, domain: str) -> Domain:
    """One domain of the configured dataset."""
    return open_domain(config.dataset, family_of(config), domain)


def loader_of(config: Config, domain: Domain, device: torch.device, part: slice | None = None) -> Loader:
    """What makes the batches of a domain, or a part of each; its processes start at the first batch."""
    order = None
    if config.sampler != "natural":
        family = family_of(config)
        others = (open_domain(config.dataset, family, name, look=False) for name in config.sources)
        counts = np.sum([other.class_counts("train") for other in others], axis=0)
        train = domain.split_indices("train")
        shares = class_shares(config.sampler, domain.class_counts("train"), counts)
        order = BalancedOrder(train, domain.labels[train], shares, config.seed, domain.name)
    augmentation = make_augmentation(config.augment, domain.image_shape)
    wanted = config.loader.processes
    idle = not domain.reads_files and augmentation is None
    automatic = 0 if idle else max(1, torch.get_num_threads() - 1)
    return Loader(
        domain, config.seed, config.batch_size, config.steps, order=order, augmentation=augmentation,
        processes=automatic if wanted == "auto" else wanted, ahead=config.loader.ahead, device=device, part=part,
    )  # fmt: skip


def model_of(config: Config, *, load_weights: bool = False) -> tuple[Model, Loss]:
    """The configured model at its initial weights (a function of the seed), and the loss.

    With the companion that the objective has, if it has one; the model's own weights are the same with and without.
    Files of weights are loaded if asked for; where the weights are overwritten anyway, they need not even be there.
    """
    family = family_of(config)
    loss = loss_of(config)
    n_outputs = loss.n_outputs(len(family.class_names))
    options, seed = config.model_options, config.seed
    model = build_model(config.model, family.image_shape, n_outputs, options, seed, load_weights=load_weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init-companion"))
        kind = OBJECTIVES.get(objective_name(config))
        model.companion = kind.companion(model.head.in_features, len(config.sources))
    return model, loss
