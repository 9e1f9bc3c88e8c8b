"""Which checkpoint is the result of a run: rules that give every evaluated step a score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from difc_ray.registry import Registry
from difc_ray.step.evaluation import SplitMetrics


class Selector(ABC):
    """A rule that gives each evaluated step a score; the best step's checkpoint is the result of the run."""

    needs_target: ClassVar[bool] = False
    """Whether the target must be evaluated during training. Such a run is marked: its result is no honest estimate."""

    @abstractmethod
    def score(self, metrics: Mapping[tuple[str, str], SplitMetrics], step: int) -> float:
        """The score of a step, larger is better.

        Args:
            metrics: by (domain, split); the sources' on ``val`` and, if the rule needs it, the target's on ``all``.
            step: the step after which they were taken.
        """

    @staticmethod
    def better(score: float, best: float | None) -> bool:
        """Whether a score replaces the best so far: NaN never does, and of equal scores the earlier stays."""
        return not math.isnan(score) and (best is None or score > best)


SELECTORS: Registry[type[Selector]] = Registry("selection rule")
"""Selection rules by name; ``SELECTORS.get(name)()``."""


@SELECTORS.register("last")
class Last(Selector):
    """The last step."""

    def score(self, metrics: Mapping[tuple[str, str], SplitMetrics], step: int) -> float:
        """The step itself."""
        return float(step)


@SELECTORS.register("train_domain_val")
class TrainDomainValidation(Selector):
    """The step with the highest accuracy on the sources' validation splits, each domain counting the same.

    Source: Gulrajani & Lopez-Paz 2021, "training-domain validation set".
    Differs from the source: the mean is over domains, not over the pooled samples, so that a large one does not decide.
    """

    def score(self, metrics: Mapping[tuple[str, str], SplitMetrics], step: int) -> float:
        """Mean accuracy over all ``val`` splits with samples; NaN if there is none."""
        return _mean_accuracy([entry for (_, split), entry in metrics.items() if split == "val"])


@SELECTORS.register("oracle")
class Oracle(Selector):
    """The step with the highest accuracy on the target: an upper bound on what selection could gain, not a result.

    Source: Gulrajani & Lopez-Paz 2021, "test-domain validation set (oracle)".
    Differs from the source: the whole target is looked at, at every evaluation, and early stopping is allowed.
    """

    needs_target = True

    def score(self, metrics: Mapping[tuple[str, str], SplitMetrics], step: int) -> float:
        """Accuracy on the ``all`` split, which only the target is evaluated on."""
        return _mean_accuracy([entry for (_, split), entry in metrics.items() if split == "all"])


def _mean_accuracy(entries: Sequence[SplitMetrics]) -> float:
    """Mean accuracy of the entries with samples, NaN without any."""
    accuracies = [entry.accuracy for entry in entries if entry.n > 0]
    return sum(accuracies) / len(accuracies) if accuracies else math.nan
