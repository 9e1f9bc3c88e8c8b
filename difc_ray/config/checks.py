"""What no single value shows: names that nothing is registered under, and combinations that mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from difc_ray.config.bundles import bundle_faults
from difc_ray.config.keys import Config
from difc_ray.config.overrides import as_argument
from difc_ray.config.problems import Problem, masked_argument, show
from difc_ray.config.resolve import (
    batch_norm_policy,
    has_idle_penalty,
    has_penalty,
    metric_kind,
    objective_name,
    objective_settings,
    rule_options,
)
from difc_ray.config.schema import leaves, value_of
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
from difc_ray.models import MODELS, build_model, has_batch_norm, named_weights
from difc_ray.objectives import BASELINE, OBJECTIVES, penalties
from difc_ray.objectives.curvature import fused_layers
from difc_ray.objectives.losses import LOSSES
from difc_ray.options import make_options
from difc_ray.registry import Registry, did_you_mean

Where = Callable[[str], str]
"""Dotted key -> where its value was given."""

_REGISTRIES: dict[str, Registry[Any]] = {
    "dataset": DATASETS,
    "model": MODELS,
    "loss": LOSSES,
    "objective": OBJECTIVES,
    "alignment.penalty": OBJECTIVES,
    "harmonize.rule": HARMONIZERS,
}
"""Keys whose values are registered names."""


@dataclass(frozen=True)
class ConfigContext:
    """A configuration and where its values were given."""

    config: Config
    where: Where

    def problem(self, what: str, remedy: str, *keys: str, data: bool = False) -> Problem:
        """The problem of one key's value, or of several together."""
        origins = list(dict.fromkeys(self.where(key) for key in keys))
        values = [value_of(self.config, key) for key in keys]
        if len(keys) == 1:
            got = show(values[0], keys[0]).removeprefix("the text ")
        else:
            got = " and ".join(
                f"`{masked_argument(f'{k}={as_argument(k, v)}')}`" for k, v in zip(keys, values, strict=True)
            )
        return Problem(what=what, got=got, where="; ".join(origins), remedy=remedy, keys=keys, data=data)


def known_names(key: str) -> list[str]:
    """The values of a key that names something registered; none for any other key."""
    if key == "alignment.penalty":
        return penalties()
    return [*_REGISTRIES.get(key, ()), *(["auto"] if key == "objective" else [])]


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
    if config.sampler != "natural" and LOSSES.get(config.loss).balances:
        found.append(f"`sampler={config.sampler}` and `loss={config.loss}` both make up for rare classes.")
    if config.batch_norm == "freeze" and named_weights(config.model_options) is None:
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
    context = ConfigContext(config, where)
    unknown = set(_unknown_names(config))
    problems = [] if plugins_failed else [_unknown_name(context, key) for key in _REGISTRIES if key in unknown]
    problems += [*_schedule(context), *_cluster(context), *_workers(context), *_sources(context), *_weights(context)]
    if not unknown.intersection({"objective", "alignment.penalty"}):
        problems += [*_scope(context), *_objective_options(context)]
        problems += [] if "harmonize.rule" in unknown else [*_penalty(context), *_view(context)]
    if "harmonize.rule" not in unknown:
        problems += _rule_options(context)
    if "dataset" not in unknown:
        family, found = _family(context)
        problems += found
        if family is not None:
            problems += _unknown_domains(context, family)
            problems += _augmentation(context, family)
            problems += [] if unknown.intersection({"loss", "model"}) else _loss_and_model(context, family)
    return problems


def _unknown_names(config: Config) -> Iterator[str]:
    """The keys whose value is not registered."""
    for key, registry in _REGISTRIES.items():
        value, names = value_of(config, key), known_names(key)
        if value not in names and (key == "alignment.penalty" or value not in registry):
            yield key


def _unknown_name(context: ConfigContext, key: str) -> Problem:
    kind = "penalty" if key == "alignment.penalty" else _REGISTRIES[key].kind
    remedy = did_you_mean(value_of(context.config, key), known_names(key))
    return context.problem(f"`{key}` must be a known {kind}", remedy, key)


def _schedule(context: ConfigContext) -> Iterator[Problem]:
    config = context.config
    if config.optimizer.warmup_steps >= config.steps:
        what = "the warm-up must end before the run does"
        yield context.problem(
            what, "Lower `optimizer.warmup_steps` or raise `steps`.", "optimizer.warmup_steps", "steps"
        )
    if config.profile is not None and config.profile > config.steps:
        what, remedy = "`profile` must not exceed `steps`", f"Write `profile={min(10, config.steps)}` or raise `steps`."
        yield context.problem(what, remedy, "profile", "steps")
    if config.selection == "oracle" and config.target is None:
        what, remedy = "`selection: oracle` needs a target", "Name a target, or take `selection=train_domain_val`."
        yield context.problem(what, remedy, "selection", "target")


def _sources(context: ConfigContext) -> Iterator[Problem]:
    sources, target = context.config.sources, context.config.target
    if not sources:
        yield context.problem("there must be at least one source domain", "Write `sources=NAME,NAME`.", "sources")
    for name in dict.fromkeys(name for name in sources if sources.count(name) > 1):
        yield context.problem(f"domain `{name}` is listed twice", "Name each source once.", "sources")
    if target in sources:
        remedy = "Take it out of `sources`, or hold another domain out (`target=` for none)."
        yield context.problem(f"target domain `{target}` is also a source", remedy, "target", "sources")


def _weights(context: ConfigContext) -> Iterator[Problem]:
    weights, k = context.config.harmonize.weights, len(context.config.sources)
    if weights is not None and len(weights) != k:
        what = f"`harmonize.weights` must hold one weight per source ({k})"
        yield context.problem(what, "Give one each, or leave it out for equal weights.", "harmonize.weights", "sources")


def _scope(context: ConfigContext) -> Iterator[Problem]:
    config, alignment = context.config, context.config.alignment
    objective = OBJECTIVES.get(objective_name(config))
    if alignment.scope == "all":
        if objective.has_penalty and "all" not in objective.scopes:
            what = f"objective `{objective_name(config)}` is about the classifier, and `alignment.scope` must be `head`"
            yield context.problem(what, "Write `alignment.scope=head`.", "alignment.scope", "alignment.penalty")
        if config.precision != "float32":
            what = "`alignment.scope=all` needs `precision: float32`, as third derivatives do not survive fewer bits"
            yield context.problem(what, "Write `precision=float32` or `alignment.scope=head`.", "precision")
        if _asks_for_curvature(config) and alignment.micro_batches > 1:
            what = f"`alignment.micro_batches` above 1 cannot serve rule `{config.harmonize.rule}`"
            yield context.problem(what, "Write `alignment.micro_batches=1`, or take another rule.",
                                  "alignment.micro_batches", "harmonize.rule")  # fmt: skip
    if refusal := objective.refusal(objective_settings(config), alignment.scope):
        what, remedy, keys = refusal
        yield context.problem(what, remedy, *(f"alignment.{key}" for key in keys))


def _objective_options(context: ConfigContext) -> Iterator[Problem]:
    name, given = objective_name(context.config), context.config.alignment.options
    try:
        make_options(OBJECTIVES.get(name).option_type, given, f"objective `{name}`", "alignment.options")
    except ConfigError as error:
        yield _unsuited(context, "alignment.options", f"objective `{name}`", error, "objective")


def _penalty(context: ConfigContext) -> Iterator[Problem]:
    """Objectives whose penalty does nothing, or that have nothing to compare or to mix."""
    config, name = context.config, objective_name(context.config)
    objective = OBJECTIVES.get(name)
    keys = tuple(f"alignment.{each}" for each in objective.coefficients())
    default = leaves()["alignment.penalty"].default
    if objective.has_penalty and config.objective != "auto" and config.alignment.penalty not in (default, name):
        remedy = f"Write `objective=auto`, or `alignment.penalty={name}`."
        what = "`objective` and `alignment.penalty` must agree"
        yield context.problem(what, remedy, "objective", "alignment.penalty")
    if has_idle_penalty(config):
        what = f"the weight of penalty `{name}` is 0 in every step"
        anneal = ("alignment.anneal.weight_before", "alignment.anneal.weight_after")
        weighed = any(value_of(config, key) > 0 for key in keys)
        raised = "one of them" if weighed or len(keys) > 1 else f"`{keys[0]}`"
        remedy = f"Raise {raised}, or write `{_plain(config)}`."
        yield context.problem(what, remedy, *(anneal if weighed else keys))
    elif objective.mixes and len(config.sources) == 1:
        what = f"objective `{name}` mixes the examples of a source with those of another, and there is one source"
        yield context.problem(what, f"Name a second source, or write `{_plain(config)}`.", "sources", "objective")
    elif objective.has_penalty and len(config.sources) == 1:
        what = "an alignment penalty needs at least two source domains: the spread between domains, which it weighs, "
        what += "is zero for one, so alignment is undefined"
        remedy = f"Name a second source, or write `{_plain(config)}`."
        yield context.problem(what, remedy, "sources", *(keys or ("objective",)))


def _plain(config: Config) -> str:
    """The settings by which a run has no penalty, nor a rule or a view that needs one."""
    settings = [f"objective={BASELINE}"]
    if HARMONIZERS.get(config.harmonize.rule).two_rows:
        settings.append("harmonize.rule=mean")
    if config.harmonize.between in ("tasks", "both"):
        settings.append("harmonize.between=domains")
    return " ".join(settings)


def _view(context: ConfigContext) -> Iterator[Problem]:
    """Rules on rows that there are not."""
    config, rule = context.config, HARMONIZERS.get(context.config.harmonize.rule)
    name, between, k = config.harmonize.rule, config.harmonize.between, len(config.sources)
    if not has_penalty(config) and not has_idle_penalty(config):  # the latter is reported as such
        why: tuple[str, ...] = ("alignment.alpha", "alignment.beta")
        other = "give the penalty a weight (`alignment.alpha=0.1`)"
        if config.objective != "auto":
            why, other = ("objective",), "an objective that has one (`objective=auto`)"
        remedy = f"Take a rule for domains (`harmonize.rule=mean`), or {other}."
        if between in ("tasks", "both"):
            what = f"`harmonize.between: {between}` needs an alignment penalty, and there is none"
            yield context.problem(what, f"Write `harmonize.between=domains`. {remedy}", "harmonize.between", *why)
        elif between == "auto" and rule.two_rows:
            what = f"rule `{name}` combines the tasks alignment and classification, and there is no penalty"
            yield context.problem(what, remedy, "harmonize.rule", *why)
    rows = {"domains": k, "both": k + 1}.get(between, 2)
    if rule.two_rows and rows != 2 and k > 0:
        what = f"rule `{name}` is defined for two rows, and `harmonize.between: {between}` has {rows}"
        remedy = "Write `harmonize.between=tasks`, or take a rule for more rows, such as `harmonize.rule=mean`."
        yield context.problem(what, remedy, "harmonize.rule", "harmonize.between", "sources")


def _rule_options(context: ConfigContext) -> Iterator[Problem]:
    config = context.config
    options = rule_options(config)
    if "lam" in config.harmonize.options and "lam" in rule_options(_without_options(config)):
        remedy = "Write `harmonize.lam` only."
        yield context.problem("`lam` has a key of its own", remedy, "harmonize.options")
        options["lam"] = config.harmonize.lam
    try:
        make_harmonizer(config.harmonize.rule, options)
    except ConfigError as error:
        yield _unsuited(context, "harmonize.options", f"rule `{config.harmonize.rule}`", error, "harmonize.rule")


def _without_options(config: Config) -> Config:
    return config.model_copy(update={"harmonize": config.harmonize.model_copy(update={"options": {}})})


def _family(context: ConfigContext) -> tuple[DatasetFamily | None, list[Problem]]:
    """The dataset, if its options and its folder are right."""
    config = context.config
    try:
        options, root = config.dataset_options, config.root
        return open_family(config.dataset, options, root, config.seed, config.image_size, config.on_bad_image), []
    except ImageSizeError as error:
        return None, [context.problem(f"`image_size` must suit dataset `{config.dataset}`", str(error), "image_size")]
    except ConfigError as error:
        return None, [_unsuited(context, "dataset_options", f"dataset `{config.dataset}`", error, "dataset")]
    except MalformedDataError as error:
        what, got, place, remedy = error.parts
        return None, [Problem(what=what, got=got, where=place, remedy=remedy, keys=("dataset",), data=True)]
    except DataError as error:
        what = f"the files of dataset `{config.dataset}` must be usable"
        return None, [context.problem(what, str(error), "dataset", "root", data=True)]


def _augmentation(context: ConfigContext, family: DatasetFamily) -> Iterator[Problem]:
    try:
        make_augmentation(context.config.augment, family.image_shape)
    except AugmentationError as error:
        yield Problem(
            what=error.what, got=error.got, where=context.where("augment"), remedy=error.remedy, keys=("augment",)
        )


def _unknown_domains(context: ConfigContext, family: DatasetFamily) -> Iterator[Problem]:
    config = context.config
    try:
        known = family.domain_names()
    except DataError as error:
        what = f"the files of dataset `{config.dataset}` must be usable"
        yield context.problem(what, str(error), "dataset", "root", data=True)
        return
    named = [("sources", name) for name in dict.fromkeys(config.sources)]
    named += [] if config.target is None else [("target", config.target)]
    named += [("observe", name) for name in dict.fromkeys(config.observe)]
    wrong = [(key, name) for key, name in named if name not in known]
    left = list(dict.fromkeys(key for key, _ in wrong if context.where(key) == "default"))
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
            yield Problem(what=what, got=f"`{name}`", where=context.where(key), remedy=remedy, keys=keys)


def _loss_and_model(context: ConfigContext, family: DatasetFamily) -> Iterator[Problem]:
    config = context.config
    try:
        loss = LOSSES.get(config.loss)(config.loss_options)
    except ConfigError as error:
        yield _unsuited(context, "loss_options", f"loss `{config.loss}`", error, "loss")
        return
    if loss.needs_target and config.target is None:
        remedy = "Name a target, or take a loss that needs none."
        yield context.problem(f"loss `{config.loss}` looks at the target's images", remedy, "target", "loss")
    try:
        n_outputs = loss.n_outputs(len(family.class_names))
    except ConfigError as error:
        what = f"`loss` must suit the {len(family.class_names)} classes of dataset `{config.dataset}`"
        yield Problem(
            what=what, got=f"`{config.loss}`", where=context.where("loss"), remedy=str(error), keys=("loss", "dataset")
        )
        return
    try:
        with torch.device("meta"):  # shapes only: no memory, no time
            model = build_model(config.model, family.image_shape, n_outputs, config.model_options, config.seed)
    except ConfigError as error:
        yield _unsuited(context, "model_options", f"model `{config.model}`", error, "model", "dataset")
        return
    except Exception:  # a plug-in's model that cannot be built from shapes is built, and fails, later
        return
    fused = fused_layers(model) if config.alignment.scope == "all" and has_penalty(config) else []
    if fused:
        what = f"`alignment.scope=all` differentiates the model three times, which the fused kernels of `{fused[0]}`"
        what += f" in model `{config.model}` do not allow"
        yield context.problem(what, "Write `alignment.scope=head`, or take another model.", "alignment.scope", "model")
    if batch_norm_policy(config) != "freeze" and has_batch_norm(model):
        yield from _batch_norm(context)


def _batch_norm(context: ConfigContext) -> Iterator[Problem]:
    """What a model that normalises over the batch does not allow."""
    config = context.config
    if config.batch_size == 1:
        what = f"`batch_size` must be at least 2 for model `{config.model}`, which normalises over the batch"
        yield context.problem(what, "Write `batch_size=2` or more.", "batch_size")
    apart = ", as the parts of a batch would be normalised apart"
    for key, why in (("alignment.micro_batches", ""), ("cluster.replicas", apart)):
        if value_of(config, key) > 1:
            what = f"`{key}` above 1 needs frozen BatchNorm in model `{config.model}`{why}"
            yield context.problem(what, f"Write `batch_norm=freeze` or `{key}=1`.", key, "batch_norm")


def _unsuited(context: ConfigContext, key: str, owner: str, error: ConfigError, *others: str) -> Problem:
    """The problem of options that their owner refused, in its own words."""
    blamed, keys = key if value_of(context.config, key) else others[0], (key, *others)
    if blamed in ("model", "loss"):  # without options the fault is in the choice itself
        what, got = f"`{blamed}` must suit the dataset and be complete", f"`{value_of(context.config, blamed)}`"
    else:
        what, got = f"`{key}` must suit {owner}", show(value_of(context.config, key))
    return Problem(what=what, got=got, where=context.where(blamed), remedy=str(error), keys=keys)


def _cluster(context: ConfigContext) -> Iterator[Problem]:
    """Problems of resources, address, bundles and transport."""
    cluster = context.config.cluster
    for name, value in (("cpus_per_worker", cluster.cpus_per_worker), ("gpus_per_worker", cluster.gpus_per_worker)):
        if isinstance(value, float) and value > 1 and not value.is_integer():
            key = f"cluster.{name}"
            yield context.problem(f"`{key}` above 1 must be a whole number", f"Write `{key}={int(value)}`.", key)
        if cluster.autoscale and value == "auto":  # of what the cluster has, which may be nothing yet
            key, why = f"cluster.{name}", "with `cluster.autoscale`, since nodes are started for what a run asks for"
            yield context.problem(f"`{key}` must be a number {why}", f"Write for example `{key}=1`.", key)
    port = (cluster.address or "").rpartition(":")[2]
    if port.isdigit() and not 1 <= int(port) <= 65535:
        what = "the port of `cluster.address` must be in [1, 65535]"
        yield context.problem(what, "Ray's own default is 6379.", "cluster.address")
    for what, got, remedy, key in bundle_faults(context.config):
        yield Problem(what=what, got=got, where=context.where(key), remedy=remedy, keys=("cluster.bundles", "sources"))


def _workers(context: ConfigContext) -> Iterator[Problem]:
    """Transports, divided batches and bundles that a run cannot have."""
    config, cluster = context.config, context.config.cluster
    rule = f"rule `{config.harmonize.rule}`, which looks at the curvature of the rows"
    if cluster.transport == "collective" and _asks_for_curvature(config):
        what = f"`cluster.transport=collective` cannot serve {rule}: that needs them in one place"
        remedy = "Write `cluster.transport=object_store`, or take another rule."
        yield context.problem(what, remedy, "cluster.transport", "harmonize.rule")
    if cluster.transport == "object_store" and cluster.backend != "auto":
        what = "`cluster.backend` is read by `cluster.transport=collective` only"
        yield context.problem(what, "Leave it out, or take that transport.", "cluster.backend", "cluster.transport")
    if cluster.backend == "nccl" and isinstance(cluster.gpus_per_worker, float) and cluster.gpus_per_worker < 1:
        what = "`cluster.backend=nccl` needs a GPU of its own for every domain worker"
        remedy = "Write `cluster.gpus_per_worker=1`, or `cluster.backend=gloo`."
        yield context.problem(what, remedy, "cluster.gpus_per_worker", "cluster.backend")
    if cluster.replicas > config.batch_size:
        what = f"`cluster.replicas` workers divide the {config.batch_size} examples of a batch, and each needs one"
        remedy = f"Write `cluster.replicas={config.batch_size}` or less, or raise `batch_size`."
        yield context.problem(what, remedy, "cluster.replicas", "batch_size")
    if cluster.replicas > 1 and _asks_for_curvature(config):
        what = f"`cluster.replicas` above 1 cannot serve {rule}: that of a batch is not the mean of its parts"
        yield context.problem(what, "Write `cluster.replicas=1`, or take another rule.", "cluster.replicas")
    objective = objective_name(config)
    if cluster.replicas > 1 and objective in OBJECTIVES and not OBJECTIVES.get(objective).divisible:
        what = f"`cluster.replicas` above 1 cannot serve the objective `{objective}`, which compares single examples"
        yield context.problem(what, "Write `cluster.replicas=1`, or take another objective.", "cluster.replicas")
    if cluster.bundles and objective in OBJECTIVES and OBJECTIVES.get(objective).mixes:
        what = f"objective `{objective}` gives every worker examples of other domains, and `cluster.bundles` holds data"
        what += " on nodes of their own"
        remedy = "Leave `cluster.bundles` out where every node has all data, or take another objective."
        yield context.problem(what, remedy, "cluster.bundles", "objective")


def _asks_for_curvature(config: Config) -> bool:
    """Whether the configured rule looks at the curvature of rows; an unknown rule is reported elsewhere."""
    return config.harmonize.rule in HARMONIZERS and bool(metric_kind(config))
