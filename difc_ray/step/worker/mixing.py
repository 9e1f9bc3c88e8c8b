"""A worker's batch blended with that of another domain, for the objectives that mix."""

from __future__ import annotations

import torch

from difc_ray.config import Config
from difc_ray.data import Batch, Loader, PartnerLoader
from difc_ray.objectives import MixedLoss, Objective, Pairing
from difc_ray.objectives.losses import Loss
from difc_ray.step.factory import load_domain, loader_of


class BatchMixer:
    """Makes the partner's batch, as the partner's own worker does, and blends it in.

    Batches are functions of (seed, domain, step), so nobody is asked for one; a part of a batch meets the same part of
    its partner's. The other sources are loaded when they are first needed.

    Args:
        config: the run's configuration.
        objective: one that mixes.
        own: the loader of the worker's own domain.

    Attributes:
        loader: of the partners' batches; it has as many processes as the worker's own.
        waited_s: how long the latest of them was waited for.
    """

    def __init__(self, config: Config, objective: Objective, own: Loader) -> None:
        self.config, self.objective = config, objective
        self.domain = config.sources.index(own.domain.name)
        others = [name for name in config.sources if name != own.domain.name]
        self.loader = PartnerLoader(own, others, self._partner, self._opened)
        self.waited_s = 0.0

    def mixed(self, batch: Batch, loss: Loss, step: int) -> tuple[Batch, Loss]:
        """The blended batch of a step, and the loss on it.

        Args:
            batch: the worker's own.
            loss: the loss with the vectors of the step.
            step: whose batch it is.

        Raises:
            DataError: an example cannot be used.
        """
        before = self.loader.stalled_s
        other = self.loader.batch(step)
        self.waited_s = self.loader.stalled_s - before
        share = float(self._pairing(step).shares_K[self.domain])
        images = share * batch.images + (1.0 - share) * other.images
        return Batch(images=images, labels=batch.labels, indices=batch.indices), MixedLoss(loss, share, other.labels)

    def _pairing(self, step: int) -> Pairing:
        return self.objective.pairing(self.config.seed, step, len(self.config.sources))

    def _partner(self, step: int) -> str:
        return self.config.sources[int(self._pairing(step).partners_K[self.domain])]

    def _opened(self, name: str) -> Loader:
        return loader_of(self.config, load_domain(self.config, name), torch.device("cpu"), self.loader.part)
