"""How well a model does: metrics of one split of one domain.

Shape suffixes: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difc_ray.data.batch import Batch
from difc_ray.data.domain import Domain, EvaluationSplit
from difc_ray.models import inference
from difc_ray.objectives.losses.base import Loss
from difc_ray.step.worker import LocalStep, ModelState

ECE_BINS: Final = 15
EVALUATION_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    """How well a model does on one split of one domain.

    All figures are NaN where there are no samples, or where a probability is not finite: a model that has diverged has
    no accuracy.

    Args:
        domain: name of the domain.
        split: train, val, test or all.
        n: number of samples.
        accuracy: share of correct predictions, in [0, 1].
        macro_f1: F1 score averaged over the classes that occur among labels or predictions, in [0, 1].
        ece: expected calibration error, 15 equal bins, mean absolute gap, in [0, 1].
        loss: mean loss in nats.
        per_class: recall of each class, NaN for a class without samples.
        confusion: counts, rows are true classes and columns predicted ones.
        replaced: samples that could not be read and that others stood in for.
    """

    domain: str
    split: str
    n: int
    accuracy: float
    macro_f1: float
    ece: float
    loss: float
    per_class: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    replaced: int = 0


def metrics_from(
    probabilities_NK: Float[Tensor, "N K"], labels_N: Int[Tensor, " N"], domain: str, split: str, loss: float
) -> SplitMetrics:
    """The metrics of given predictions.

    Args:
        probabilities_NK: class probabilities, rows sum to 1.
        labels_N: true class numbers.
        domain: name of the domain.
        split: train, val, test or all.
        loss: mean loss, taken over as it is.
    """
    n, n_classes = probabilities_NK.shape
    if n == 0 or not bool(torch.isfinite(probabilities_NK).all()):
        nan, nothing = math.nan, ((0,) * n_classes,) * n_classes
        return SplitMetrics(
            domain=domain, split=split, n=n, accuracy=nan, macro_f1=nan, ece=nan, loss=nan,
            per_class=(nan,) * n_classes, confusion=nothing,
        )  # fmt: skip
    from torchmetrics.functional import classification  # here: it takes seconds, and training does without

    # An entry above 1 by a rounding error would make torchmetrics take the probabilities for logits.
    given = (probabilities_NK.clamp(0, 1), labels_N)
    common = {"num_classes": n_classes, "validate_args": False}
    present = torch.bincount(labels_N, minlength=n_classes) > 0
    recall = classification.multiclass_recall(*given, average="none", **common)
    return SplitMetrics(
        domain=domain,
        split=split,
        n=n,
        accuracy=float(classification.multiclass_accuracy(*given, average="micro", **common)),
        macro_f1=float(classification.multiclass_f1_score(*given, average="macro", **common)),
        ece=float(classification.multiclass_calibration_error(*given, n_bins=ECE_BINS, norm="l1", **common)),
        loss=loss,
        per_class=tuple(torch.where(present, recall, math.nan).tolist()),
        confusion=tuple(map(tuple, classification.multiclass_confusion_matrix(*given, **common).tolist())),
    )


def evaluate_domain(
    model: nn.Module, loss: Loss, domain: Domain, split: str, batch_size: int = EVALUATION_BATCH,
    batches: Iterator[Batch] | None = None,
) -> SplitMetrics:  # fmt: skip
    """The metrics of a model on one split of a domain.

    The model runs in evaluation mode and without a graph; afterwards every module is in the mode it was in before.

    Args:
        model: images to logits; the images are moved to the device of its parameters.
        loss: turns logits into probabilities and into the mean loss.
        domain: where the examples come from.
        split: train, val, test or all.
        batch_size: samples per forward pass, >= 1.
        batches: the examples of the split, where they are made elsewhere.
    """
    assert split in ("train", "val", "test", "all"), split
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    probabilities, labels, total = [torch.empty(0, len(domain.class_names))], [torch.empty(0, dtype=torch.int64)], 0.0
    with inference(model):
        for batch in batches or domain.evaluation_batches(cast(EvaluationSplit, split), batch_size):
            logits, truth = model(batch.images.to(device)), batch.labels.to(device)
            total += len(batch) * float(loss.evaluation_value(logits, truth))
            probabilities.append(loss.predictions(logits).float().cpu())
            labels.append(batch.labels.cpu())
    labels_N = torch.cat(labels)
    metrics = metrics_from(torch.cat(probabilities), labels_N, domain.name, split, total / max(len(labels_N), 1))
    return replace(metrics, replaced=domain.replaced(cast(EvaluationSplit, split)))


def evaluate_state(step: LocalStep, state: ModelState, domain: Domain, split: str) -> SplitMetrics:
    """Metrics of a state on one split of a domain, with a worker's own model.

    Args:
        step: the worker's half; its model is overwritten.
        state: the parameters and buffers to evaluate; a domain that has buffers of its own is evaluated with them.
        domain: a domain of the run's dataset, not necessarily the worker's own.
        split: ``train``, ``val``, ``test`` or ``all``.
    """
    step.load_state(state, domain.name)
    batches = step.loader.evaluation(domain, cast(EvaluationSplit, split), EVALUATION_BATCH)
    return evaluate_domain(step.model, step.loss, domain, split, batches=batches)


def accuracies(metrics: Sequence[SplitMetrics]) -> dict[str, dict[str, float]]:
    """Domain -> split -> accuracy."""
    found: dict[str, dict[str, float]] = {}
    for m in metrics:
        found.setdefault(m.domain, {})[m.split] = m.accuracy
    return found


def named_metrics(metrics: Sequence[SplitMetrics], *kinds: str, prefix: str = "") -> dict[str, float]:
    """Metrics of those kinds by the names that the tracker knows: `val/accuracy/DOMAIN`."""
    return {f"{prefix}{m.split}/{kind}/{m.domain}": getattr(m, kind) for kind in kinds for m in metrics}


def worst_domain(metrics: Sequence[SplitMetrics]) -> SplitMetrics:
    """The entry with the lowest accuracy; the first of equal ones; one without a number is worse than all.

    Args:
        metrics: at least one entry; entries of empty splits count only if there are no others.
    """
    judged = [entry for entry in metrics if entry.n > 0] or list(metrics)
    return min(judged, key=lambda entry: -math.inf if math.isnan(entry.accuracy) else entry.accuracy)
