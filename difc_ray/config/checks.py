"""What no single value shows: names that nothing is registered under, and combinations that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from difc_ray.config.asking import Asked, Where, value_of
from difc_ray.config.cluster_checks import asks_for_curvature, cluster_problems
from difc_ray.config.problems import Problem, show
from difc_ray.config.resolve import (
    PENALTIES,
    batch_norm_policy,
    has_penalty,
    objective_name,
    penalty_weight,
    rule_options,
)
from difc_ray.config.schema import leaves
from difc_ray.config.tree import Config
from difc_ray.data import (
    DATASETS,
    AugmentationError,
    DatasetFamily,
    ImageSizeError,
    MalformedDataError,
    make_augmentation,
    open_family,
)
from difc_ray.errors import ConfigError, DataError
from difc_ray.harmonizers import HARMONIZERS, make_harmonizer
from difc_ray.models import MODELS, build_model, has_batch_norm
from difc_ray.objectives import OBJECTIVES
from difc_ray.objectives.curvature import fused_layers
from difc_ray.objectives.losses import LOSSES
from difc_ray.registry import Registry, did_you_mean
from difc_ray.secrets import masked_values

_REGISTRIES: tuple[tuple[str, str, Registry[Any]], ...] = (
    ("dataset", "dataset", DATASETS),
    ("model", "model", MODELS),
    ("loss", "loss", LOSSES),
    ("objective", "objective", OBJECTIVES),
    ("harmonize.rule", "harmonizer", HARMONIZERS),
)


def check(config: Config) -> list[str]:
    """Everything in a configuration that does not fit together, one sentence each; empty: nothing.

    Plug-ins must have been imported. Nothing is written, and no random generator is touched.
    """
    return [str(problem) for problem in semantic_problems(config, lambda key: origin_by_value(config, key))]


def cautions(config: Config) -> list[str]:
    """What is allowed and yet perhaps not meant, one sentence each."""
    found = []
    if config.engine == "inline" and config.cluster.address is not None:
        found.append("`engine=inline` computes in this process; `cluster.address` is not used.")
    if config.selection == "oracle":
        found.append("`selection=oracle` chooses by the target's own labels; the accuracy on it is no estimate.")
    if config.target is not None and LOSSES.get(config.loss)(config.loss_options).needs_target:
        found.append(
            f"`loss={config.loss}` looks at images of `{config.target}`, not at labels: the accuracy on it is that of "
            "adaptation to a known target, no longer of generalization to an unseen one."
        )
    if config.sampler != "natural" and config.loss in ("ldam", "difc"):
        found.append(f"`sampler={config.sampler}` and `loss={config.loss}` both make up for rare classes.")
    if config.batch_norm == "freeze" and config.model_options.get("weights") in (None, "none"):
        found.append(
            "`batch_norm=freeze` without `model_options.weights` keeps BatchNorm at mean 0 and variance 1: it "
            "normalises nothing."
        )
    return found


def origin_by_value(config: Config, key: str) -> str:
    """Where a value was probably given, for a configuration of unknown origin."""
    leaf = leaves().get(key)
    return "default" if leaf is not None and value_of(config, key) == leaf.default else "configuration"


def semantic_problems(config: Config, where: Where, *, plugins_failed: bool = False) -> list[Problem]:
    """Problems of a configuration whose single values are right.

    Args:
        config: the configuration.
        where: dotted key -> where its value was given.
        plugins_failed: whether unknown names may be a plug-in's, and are left alone.
    """
    asked = Asked(config, where)
    unknown = set(_unknown_names(config))
    problems = [] if plugins_failed else [_unknown_name(asked, *entry) for entry in _REGISTRIES if entry[0] in unknown]
    problems += [*_schedule(asked), *cluster_problems(asked), *_sources(asked), *_scope(asked), *_weights(asked)]
    if not unknown.intersection({"objective", "harmonize.rule"}):
        problems += [*_penalty(asked), *_view(asked)]
    if "harmonize.rule" not in unknown:
        problems += _rule_options(asked)
    if "dataset" not in unknown:
        family, found = _family(asked)
        problems += found
        if family is not None:
            problems += _unknown_domains(asked, family)
            problems += _augmentation(asked, family)
            problems += [] if unknown.intersection({"loss", "model"}) else _loss_and_model(asked, family)
    return problems


def _unknown_names(config: Config) -> Iterator[str]:
    """The keys whose value is not registered."""
    for key, _, registry in _REGISTRIES:
        value = value_of(config, key)
        if value not in registry and (key, value) != ("objective", "auto"):
            yield key


def _unknown_name(asked: Asked, key: str, kind: str, registry: Registry[Any]) -> Problem:
    known = [*registry.names(), "auto"] if key == "objective" else registry.names()
    return asked.problem(f"`{key}` must be a known {kind}", did_you_mean(value_of(asked.config, key), known), key)


def _schedule(asked: Asked) -> Iterator[Problem]:
    config = asked.config
    if config.optimizer.warmup_steps >= config.steps:
        what = "the warm-up must end before the run does"
        yield asked.problem(what, "Lower `optimizer.warmup_steps` or raise `steps`.", "optimizer.warmup_steps", "steps")
    if config.profile is not None and config.profile > config.steps:
        what, remedy = "`profile` must not exceed `steps`", f"Write `profile={min(10, config.steps)}` or raise `steps`."
        yield asked.problem(what, remedy, "profile", "steps")
    if config.selection == "oracle" and config.target is None:
        what, remedy = "`selection: oracle` needs a target", "Name a target, or take `selection=train_domain_val`."
        yield asked.problem(what, remedy, "selection", "target")


def _sources(asked: Asked) -> Iterator[Problem]:
    sources, target = asked.config.sources, asked.config.target
    if not sources:
        yield asked.problem("there must be at least one source domain", "Write `sources=NAME,NAME`.", "sources")
    for name in dict.fromkeys(name for name in sources if sources.count(name) > 1):
        yield asked.problem(f"domain `{name}` is listed twice", "Name each source once.", "sources")
    if target in sources:
        remedy = "Take it out of `sources`, or hold another domain out (`target=` for none)."
        yield asked.problem(f"target domain `{target}` is also a source", remedy, "target", "sources")


def _weights(asked: Asked) -> Iterator[Problem]:
    weights, k = asked.config.harmonize.weights, len(asked.config.sources)
    if weights is not None and len(weights) != k:
        what = f"`harmonize.weights` must hold one weight per source ({k})"
        yield asked.problem(what, "Give one each, or leave it out for equal weights.", "harmonize.weights", "sources")


def _scope(asked: Asked) -> Iterator[Problem]:
    alignment = asked.config.alignment
    if alignment.scope == "all":
        name = objective_name(asked.config)
        if name in OBJECTIVES and OBJECTIVES.get(name).has_penalty and "all" not in OBJECTIVES.get(name).scopes:
            what = f"objective `{name}` is about the classifier, and `alignment.scope` must be `head`"
            yield asked.problem(what, "Write `alignment.scope=head`.", "alignment.scope", "alignment.penalty")
        if asked.config.precision != "float32":
            what = "`alignment.scope=all` needs `precision: float32`, as third derivatives do not survive fewer bits"
            yield asked.problem(what, "Write `precision=float32` or `alignment.scope=head`.", "precision")
        if asks_for_curvature(asked) and alignment.micro_batches > 1:
            what = f"`alignment.micro_batches` above 1 cannot serve rule `{asked.config.harmonize.rule}`"
            yield asked.problem(what, "Write `alignment.micro_batches=1`, or take another rule.",
                                "alignment.micro_batches", "harmonize.rule")  # fmt: skip
        if name == "hutchinson" and alignment.estimator == "exact":
            what = "the exact Hessian diagonal has a closed form for the head only"
            remedy = (
                "Write `alignment.scope=head`; beyond the head the diagonal takes `alignment.estimator=hutchinson`."
            )
            yield asked.problem(what, remedy, "alignment.estimator", "alignment.scope")


def _penalty(asked: Asked) -> Iterator[Problem]:
    """Objectives whose penalty does nothing, or that have nothing to compare or to mix."""
    config, name = asked.config, objective_name(asked.config)
    keys = tuple(f"alignment.{each}" for each in OBJECTIVES.get(name).reads)
    default = leaves()["alignment.penalty"].default
    if name in PENALTIES and config.objective != "auto" and config.alignment.penalty not in (default, name):
        remedy = f"Write `objective=auto`, or `alignment.penalty={name}`."
        yield asked.problem("`objective` and `alignment.penalty` must agree", remedy, "objective", "alignment.penalty")
    if name in PENALTIES and penalty_weight(config, name) == 0:
        what = f"the weight of penalty `{name}` is 0 in every step"
        anneal = ("alignment.anneal.weight_before", "alignment.anneal.weight_after")
        weighed = any(value_of(config, key) > 0 for key in keys)
        raised = "one of them" if weighed or len(keys) > 1 else f"`{keys[0]}`"
        remedy = f"Raise {raised}, or write `{_plain(config)}`."
        yield asked.problem(what, remedy, *(anneal if weighed else keys))
    elif OBJECTIVES.get(name).mixes and len(config.sources) == 1:
        what = f"objective `{name}` mixes the examples of a source with those of another, and there is one source"
        yield asked.problem(what, f"Name a second source, or write `{_plain(config)}`.", "sources", "objective")
    elif has_penalty(config) and len(config.sources) == 1:
        what = "an alignment penalty needs at least two source domains: the spread between domains, which it weighs, "
        what += "is zero for one, so alignment is undefined"
        remedy = f"Name a second source, or write `{_plain(config)}`."
        yield asked.problem(what, remedy, "sources", *(keys if name in PENALTIES else ("objective",)))


def _plain(config: Config) -> str:
    """The settings by which a run has no penalty, nor a rule or a view that needs one."""
    settings = ["objective=erm"]
    if HARMONIZERS.get(config.harmonize.rule).two_rows:
        settings.append("harmonize.rule=mean")
    if config.harmonize.between in ("tasks", "both"):
        settings.append("harmonize.between=domains")
    return " ".join(settings)


def _view(asked: Asked) -> Iterator[Problem]:
    """Rules on rows that there are not."""
    config, rule = asked.config, HARMONIZERS.get(asked.config.harmonize.rule)
    name, between, k = config.harmonize.rule, config.harmonize.between, len(config.sources)
    dead = objective_name(config) in PENALTIES and not has_penalty(config)  # reported as such
    if not has_penalty(config) and not dead:
        why: tuple[str, ...] = ("alignment.alpha", "alignment.beta")
        other = "give the penalty a weight (`alignment.alpha=0.1`)"
        if config.objective != "auto":
            why, other = ("objective",), "an objective that has one (`objective=auto`)"
        remedy = f"Take a rule for domains (`harmonize.rule=mean`), or {other}."
        if between in ("tasks", "both"):
            what = f"`harmonize.between: {between}` needs an alignment penalty, and there is none"
            yield asked.problem(what, f"Write `harmonize.between=domains`. {remedy}", "harmonize.between", *why)
        elif between == "auto" and rule.two_rows:
            what = f"rule `{name}` combines the tasks alignment and classification, and there is no penalty"
            yield asked.problem(what, remedy, "harmonize.rule", *why)
    rows = {"domains": k, "both": k + 1}.get(between, 2)
    if rule.two_rows and rows != 2 and k > 0:
        what = f"rule `{name}` is defined for two rows, and `harmonize.between: {between}` has {rows}"
        remedy = "Write `harmonize.between=tasks`, or take a rule for more rows, such as `harmonize.rule=mean`."
        yield asked.problem(what, remedy, "harmonize.rule", "harmonize.between", "sources")


def _rule_options(asked: Asked) -> Iterator[Problem]:
    config = asked.config
    options = rule_options(config)
    if "lam" in config.harmonize.options and "lam" in rule_options(_without_options(config)):
        remedy = "Write `harmonize.lam` only."
        yield asked.problem("`lam` has a key of its own", remedy, "harmonize.options")
        options["lam"] = config.harmonize.lam
    try:
        make_harmonizer(config.harmonize.rule, options)
    except ConfigError as error:
        yield _unsuited(asked, "harmonize.options", f"rule `{config.harmonize.rule}`", error, "harmonize.rule")


def _without_options(config: Config) -> Config:
    return config.model_copy(update={"harmonize": config.harmonize.model_copy(update={"options": {}})})


def _family(asked: Asked) -> tuple[DatasetFamily | None, list[Problem]]:
    """The dataset, if its options and its folder are right."""
    config = asked.config
    try:
        options, root = config.dataset_options, config.root
        return open_family(config.dataset, options, root, config.seed, config.image_size, config.on_bad_image), []
    except ImageSizeError as error:
        return None, [asked.problem(f"`image_size` must suit dataset `{config.dataset}`", str(error), "image_size")]
    except ConfigError as error:
        return None, [_unsuited(asked, "dataset_options", f"dataset `{config.dataset}`", error, "dataset")]
    except MalformedDataError as error:
        what, got, place, remedy = error.parts
        return None, [Problem(what=what, got=got, where=place, remedy=remedy, keys=("dataset",), data=True)]
    except DataError as error:
        what = f"the files of dataset `{config.dataset}` must be usable"
        return None, [asked.problem(what, str(error), "dataset", "root", data=True)]


def _augmentation(asked: Asked, family: DatasetFamily) -> Iterator[Problem]:
    try:
        make_augmentation(asked.config.augment, family.image_shape)
    except AugmentationError as error:
        yield Problem(
            what=error.what, got=error.got, where=asked.where("augment"), remedy=error.remedy, keys=("augment",)
        )


def _unknown_domains(asked: Asked, family: DatasetFamily) -> Iterator[Problem]:
    config = asked.config
    try:
        known = family.domain_names()
    except DataError as error:
        what = f"the files of dataset `{config.dataset}` must be usable"
        yield asked.problem(what, str(error), "dataset", "root", data=True)
        return
    named = [("sources", name) for name in dict.fromkeys(config.sources)]
    named += [] if config.target is None else [("target", config.target)]
    named += [("observe", name) for name in dict.fromkeys(config.observe)]
    wrong = [(key, name) for key, name in named if name not in known]
    left = list(dict.fromkeys(key for key, _ in wrong if asked.where(key) == "default"))
    if left:
        named_keys = " and ".join(f"`{key}`" for key in left)
        what, names = f"{named_keys} must name domains of dataset `{config.dataset}`", ", ".join(known)
        got = ", ".join(f"`{name}`" for key, name in wrong if key in left)
        remedy = f"Name {named_keys} of `{config.dataset}`: it has {names}."
        depends = (*left, "dataset", "dataset_options", "root")
        yield Problem(what=what, got=got, where="default", remedy=remedy, keys=depends)
    for key, name in wrong:
        if key not in left:
            what = f"`{key}` must name domains of dataset `{config.dataset}`"
            remedy = did_you_mean(name, known)
            keys = (key, "dataset", "dataset_options", "root")
            yield Problem(what=what, got=f"`{name}`", where=asked.where(key), remedy=remedy, keys=keys)


def _loss_and_model(asked: Asked, family: DatasetFamily) -> Iterator[Problem]:
    config = asked.config
    try:
        loss = LOSSES.get(config.loss)(config.loss_options)
    except ConfigError as error:
        yield _unsuited(asked, "loss_options", f"loss `{config.loss}`", error, "loss")
        return
    if loss.needs_target and config.target is None:
        remedy = "Name a target, or take `loss=ldam`."
        yield asked.problem(f"loss `{config.loss}` looks at the target's images", remedy, "target", "loss")
    try:
        n_outputs = loss.n_outputs(len(family.class_names))
    except ConfigError as error:
        what = f"`loss` must suit the {len(family.class_names)} classes of dataset `{config.dataset}`"
        yield Problem(
            what=what, got=f"`{config.loss}`", where=asked.where("loss"), remedy=str(error), keys=("loss", "dataset")
        )
        return
    try:
        with torch.device("meta"):  # shapes only: no memory, no time
            model = build_model(config.model, family.image_shape, n_outputs, config.model_options, config.seed)
    except ConfigError as error:
        yield _unsuited(asked, "model_options", f"model `{config.model}`", error, "model", "dataset")
        return
    except Exception:  # a plug-in's model that cannot be built from shapes is built, and fails, later
        return
    if config.batch_size == 1 and batch_norm_policy(config) != "freeze" and has_batch_norm(model):
        what = f"`batch_size` must be at least 2 for model `{config.model}`, which normalises over the batch"
        yield asked.problem(what, "Write `batch_size=2` or more.", "batch_size")
    fused = fused_layers(model) if config.alignment.scope == "all" and has_penalty(config) else []
    if fused:
        what = f"`alignment.scope=all` differentiates the model three times, which the fused kernels of `{fused[0]}`"
        what += f" in model `{config.model}` do not allow"
        yield asked.problem(what, "Write `alignment.scope=head`, or take another model.", "alignment.scope", "model")
    if config.alignment.micro_batches > 1 and batch_norm_policy(config) != "freeze" and has_batch_norm(model):
        what = f"`alignment.micro_batches` above 1 needs frozen BatchNorm in model `{config.model}`"
        remedy = "Write `batch_norm=freeze` or `alignment.micro_batches=1`."
        yield asked.problem(what, remedy, "alignment.micro_batches", "batch_norm")
    if config.cluster.replicas > 1 and batch_norm_policy(config) != "freeze" and has_batch_norm(model):
        what = f"`cluster.replicas` above 1 needs frozen BatchNorm in model `{config.model}`, as the parts of a batch"
        what += " would be normalised apart"
        remedy = "Write `batch_norm=freeze` or `cluster.replicas=1`."
        yield asked.problem(what, remedy, "cluster.replicas", "batch_norm")


def _unsuited(asked: Asked, key: str, owner: str, error: ConfigError, *others: str) -> Problem:
    """The problem of options that their owner refused, in its own words."""
    blamed, keys = key if value_of(asked.config, key) else others[0], (key, *others)
    if blamed in ("model", "loss"):  # without options the fault is in the choice itself
        what, got = f"`{blamed}` must suit the dataset and be complete", f"`{value_of(asked.config, blamed)}`"
    else:
        what, got = f"`{key}` must suit {owner}", show(masked_values(value_of(asked.config, key)))
    return Problem(what=what, got=got, where=asked.where(blamed), remedy=str(error), keys=keys)
