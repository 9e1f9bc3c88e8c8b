"""Metrics per domain and split, and the rules that choose: the checkpoint of a run, and the setting among many runs.

Shape suffixes: N samples, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difc_ray.data.base import Batch, Domain, EvaluationSplit
from difc_ray.errors import ConfigError
from difc_ray.models import inference
from difc_ray.objectives.losses.base import Loss
from difc_ray.registry import Registry, did_you_mean
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
        batches: the examples of the split, where somebody else makes them.
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
    found = metrics_from(torch.cat(probabilities), labels_N, domain.name, split, total / max(len(labels_N), 1))
    return replace(found, replaced=domain.replaced(cast(EvaluationSplit, split)))


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


def worst_domain(metrics: Sequence[SplitMetrics]) -> SplitMetrics:
    """The entry with the lowest accuracy; the first of equal ones; one without a number is worse than all.

    Args:
        metrics: at least one entry; entries of empty splits count only if there are no others.
    """
    judged = [entry for entry in metrics if entry.n > 0] or list(metrics)
    return min(judged, key=lambda entry: -math.inf if math.isnan(entry.accuracy) else entry.accuracy)


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


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One finished run as selection across runs sees it; accuracies in [0, 1].

    Args:
        point: identity of the setting, the same for all of its seeds.
        seed: seed of the run.
        validation: accuracy of the selected checkpoint on the sources' ``val`` splits, mean over the sources.
        target: accuracy on the whole target; None if there is none.
        held_out: per source domain the accuracy on it of an extra run of the same setting and seed that trained without
            this domain and without the target; empty if there are no such runs.
    """

    point: str
    seed: int
    validation: float
    target: float | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a selection rule picks among settings.

    Args:
        rule: name of the rule.
        honest: whether the target's labels had no part in it.
        point: the setting; None if the rule cannot choose.
        score: the rule's criterion for it, mean over seeds, in [0, 1].
        seeds: number of runs behind the score.
        target: mean accuracy of the picked setting on the target; None without one.
        target_error: standard error of that mean over seeds; None below two seeds.
        remark: why the rule cannot choose, or what limits its choice; a sentence, or empty.
    """

    rule: str
    honest: bool
    point: str | None = None
    score: float | None = None
    seeds: int = 0
    target: float | None = None
    target_error: float | None = None
    remark: str = ""


CHOICE_RULES: Final = ("train_domain_val", "leave_one_domain_out", "oracle")
"""Rules of :func:`choose`; the first is the default."""


def choose(candidates: Sequence[Candidate], rule: str = CHOICE_RULES[0]) -> Choice:
    """The setting with the highest criterion, averaged over the seeds of each setting; the first of equal ones.

    ``train_domain_val`` takes the validation accuracy on the sources, ``leave_one_domain_out`` the mean accuracy on
    sources that were held out in turn, ``oracle`` the accuracy on the target itself.

    Args:
        candidates: finished runs, any number of seeds per setting.
        rule: one of :data:`CHOICE_RULES`.

    Returns:
        The choice; without a setting, and with a sentence that says why, if no run has what the rule needs.

    Raises:
        ConfigError: there is no such rule.

    Source: Gulrajani & Lopez-Paz 2021, section 3, the three model selection methods.
    Differs from the source: the oracle reads the checkpoint that the run itself selected, not its last one.
    """
    if rule not in CHOICE_RULES:
        raise ConfigError(
            f"the selection rule across runs must be known, got `{rule}` (--selection). "
            f"{did_you_mean(rule, CHOICE_RULES)}"
        )
    folds = sorted({domain for candidate in candidates for domain in candidate.held_out})
    criterion, missing = _criterion(rule, folds)
    scores: dict[str, list[float]] = {}
    for candidate in candidates:
        value = criterion(candidate)
        if not math.isnan(value):
            scores.setdefault(candidate.point, []).append(value)
    if not scores:
        return Choice(rule=rule, honest=rule != "oracle", remark=missing)
    means = {point: math.fsum(values) / len(values) for point, values in scores.items()}
    best = max(means, key=lambda point: means[point])
    targets = [c.target for c in candidates if c.point == best and c.target is not None and not math.isnan(c.target)]
    counts = {len(values) for values in scores.values()}
    uneven = f"The settings have {min(counts)} to {max(counts)} seeds each; few seeds make a lucky mean more likely."
    mean, error = mean_and_error(targets)
    return Choice(
        rule=rule, honest=rule != "oracle", point=best, score=means[best], seeds=len(scores[best]),
        target=mean, target_error=error, remark=uneven if len(counts) > 1 else "",
    )  # fmt: skip


def choose_all(candidates: Sequence[Candidate]) -> list[Choice]:
    """What each rule of :data:`CHOICE_RULES` would have picked, in that order."""
    return [choose(candidates, rule) for rule in CHOICE_RULES]


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and its standard error: the sample's standard deviation (n - 1) over √n; None where n does not allow it.

    >>> mean_and_error([1.0, 3.0]), mean_and_error([1.0]), mean_and_error([])
    ((2.0, 1.0), (1.0, None), (None, None))
    """
    n = len(values)
    if n == 0:
        return None, None
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _criterion(rule: str, folds: Sequence[str]) -> tuple[Callable[[Candidate], float], str]:
    """What a rule reads off a run, NaN where the run has it not; and the sentence for when no run has it."""
    if rule == "train_domain_val":
        return lambda candidate: candidate.validation, "No finished run has a validation accuracy on its sources."
    if rule == "oracle":
        return (
            lambda candidate: math.nan if candidate.target is None else candidate.target,
            "No finished run has an accuracy on a target.",
        )
    if not folds:
        return lambda candidate: math.nan, "No runs held a source domain out; sweep with `leave_one_domain_out`."
    return (
        lambda candidate: math.fsum(candidate.held_out.get(domain, math.nan) for domain in folds) / len(folds),
        f"No setting has a finished run for every held-out source ({', '.join(folds)}).",
    )
