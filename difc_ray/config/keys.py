"""The configuration tree: every key with its default, and under it what it means, its unit and its range.

Adding a key is one field with its docstring; ``difc-ray config``, the error messages and the MLflow parameters follow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from difc_ray.config.types import (
    ADDRESS,
    MODULE,
    RUN_NAME,
    Bundles,
    Names,
    Options,
    Section,
    Seed,
    Text,
    tuple_from_list,
)
from difc_ray.options import Count, Decay, FilePath, Natural, NonNegative, Positive, Rule, Share, UnitInterval


class OptimizerConfig(Section):
    """How the direction becomes an update."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Torch optimizer."""
    lr: Positive = 1e-3
    """Learning rate, > 0."""
    weight_decay: NonNegative = 0.0
    """Weight decay, >= 0 (decoupled with `adamw`)."""
    l2: NonNegative = 0.0
    """Weight of the sum of all squared parameters in the classification loss, >= 0.

    Other than weight decay it is part of the rows that a rule sees, and is divided with them by `anneal.rescale_loss`.
    """
    momentum: Decay = 0.9
    """Momentum in [0, 1), of `sgd` only."""
    betas: Annotated[
        tuple[Decay, Decay], BeforeValidator(tuple_from_list), Rule("two numbers in [0, 1)", "Write `0.9,0.999`.")
    ] = (0.9, 0.999)
    """Decay of the two moments, each in [0, 1), of `adam` and `adamw`."""
    eps: Positive = 1e-8
    """Added to the root of the second moment, > 0, of `adam` and `adamw`."""
    decay_norms_and_biases: bool = True
    """Whether weight decay also acts on parameters with fewer than two dimensions: biases, scales and shifts."""
    clip_norm: Positive | None = None
    """Length to which a longer direction is cut, > 0, before weight decay; null: none is cut."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate after the warm-up: constant, half a cosine down to 0 at the last step, or `step`-wise lower."""
    step_every: Count = 100
    """Steps after the warm-up between two cuts of `schedule: step`, >= 1."""
    step_factor: Share = 0.1
    """What `schedule: step` multiplies the learning rate with, in (0, 1]."""
    warmup_steps: Natural = 0
    """Steps of linear warm-up, >= 0 and < `steps`."""


class AnnealConfig(Section):
    """A weight on the alignment penalty that changes once."""

    weight_before: NonNegative = 1.0
    """Factor on alpha and beta before `steps`, >= 0."""
    steps: Natural = 0
    """First step with `weight_after`, >= 0."""
    weight_after: NonNegative = 1.0
    """Factor on alpha and beta from `steps` on, >= 0."""
    rescale_loss: bool = False
    """Whether the whole loss is divided by the factor where that exceeds 1."""
    reset_optimizer: bool = False
    """Whether the optimizer forgets its moments at `steps`."""


class AlignmentConfig(Section):
    """The penalty on the spread of gradients and Hessians between the source domains."""

    penalty: Text = "hutchinson"
    """A registered objective that has a penalty: what is aligned."""
    alpha: NonNegative = 0.1
    """Weight of the Hessian term, or of the only term of most penalties, >= 0."""
    beta: NonNegative = 0.1
    """Weight of the gradient term, >= 0; penalties without one do not read it."""
    scope: Literal["head", "all"] = "head"
    """Parameters that are aligned: those of `head`, the linear classifier, in closed form, or `all`.

    `all` differentiates the whole network three times, with `estimator: hutchinson`, at some six times the cost.
    """
    micro_batches: Count = 1
    """Pieces of a batch that `scope: all` differentiates one after the other, >= 1: less memory, more time."""
    estimator: Literal["exact", "hutchinson"] = "exact"
    """Hessian diagonal: closed form (head only), or estimated from random probes; read by penalties that have one."""
    probes: Count = 1
    """Probes per set and step, >= 1, for `estimator: hutchinson`."""
    probe_sets: Literal["shared", "independent", "released"] = "shared"
    """One probe set for all domains, one per domain, or one per domain and another for the mean (as published)."""
    detach_mean: Annotated[Literal["auto"] | bool, Rule("`auto`, true or false", "Write `true` or `false`.")] = "auto"
    """Whether the mean is a constant for the gradient, where that matters; `auto`: as the penalty has it."""
    reduction: Literal["mean", "sum"] = "mean"
    """Mean or sum over the domains."""
    mixup: Positive = 0.2
    """a of the Beta(a, a) distribution that an objective draws the shares of a mix from, > 0; no penalty reads it."""
    options: Options = Field(default_factory=dict)
    """The objective's own options."""
    anneal: AnnealConfig = AnnealConfig()
    """A weight on the penalty that changes once."""


class CurvatureConfig(Section):
    """The curvature that the flatness rules are told of; other rules do not read it."""

    kind: Literal["diagonal", "hvp"] = "diagonal"
    """A Hessian diagonal over all parameters, or the head's full Hessian by its products (Neumann series)."""
    rest: Literal["squared_gradient", "hutchinson", "none"] = "squared_gradient"
    """The diagonal outside the head: squared gradient, a Hutchinson estimate clamped at 0, or zero."""
    decay: Decay = 0.9
    """Decay of the average over steps, in [0, 1)."""
    normalize: bool = True
    """Whether the curvature is divided by its mean, so that `harmonize.flatness` has no unit."""
    order: Count = 1
    """Order of the Neumann series with `kind: hvp`, >= 1."""
    adaptive: bool = False
    """Whether `harmonize.flatness` is scaled by the measured share of noise in the gradient, at most 1."""


class HarmonizeConfig(Section):
    """How rows that disagree are combined into one direction."""

    rule: Text = "ghpp"
    """A registered harmonizer."""
    lam: UnitInterval = 0.5
    """How the rotation is shared between the rows, in [0, 1], by the rules that have an option `lam`."""
    flatness: NonNegative = 0.1
    """λ of the flatness rules, >= 0: 0 ignores the curvature; other rules do not read it."""
    curvature: CurvatureConfig = CurvatureConfig()
    """What the flatness rules know of the curvature."""
    between: Literal["auto", "tasks", "domains", "both"] = "auto"
    """Rows that the rule sees: the two tasks, one per domain, or one per domain and the alignment.

    `auto`: `tasks` (alignment, classification) for the two-row rules, `domains` for all others.
    """
    weights: Annotated[
        tuple[Positive, ...] | None,
        BeforeValidator(tuple_from_list),
        Rule("a list of finite numbers > 0, one per source, or null", "Leave it out for equal weights."),
    ] = None
    """One weight per source, > 0, scaled to sum 1; null: all equal."""
    options: Options = Field(default_factory=dict)
    """The rule's own options."""


class CheckpointConfig(Section):
    """When the training state is saved."""

    every: Count = 100
    """Steps between two checkpoints, >= 1."""
    keep: Count = 3
    """Newest checkpoints that are kept, >= 1, besides the best one."""


class TrackingConfig(Section):
    """Where MLflow is told about the run."""

    uri: Text | None = None
    """MLflow store or server; null: MLFLOW_TRACKING_URI, else an SQLite file under `output`."""
    experiment: Text = "difc_ray"
    """MLflow experiment."""
    mode: Literal["on", "off"] = "on"
    """`off`: nothing is sent; the run folder holds the same records."""


class ClusterConfig(Section):
    """What Ray is asked for."""

    address: Annotated[
        Annotated[str, Field(pattern=ADDRESS)] | None,
        Rule("null, `auto`, `local`, `HOST:PORT` or `ray://HOST:PORT`", "Give the port, such as `10.0.0.9:6379`."),
    ] = None
    """Ray cluster to join; null: RAY_ADDRESS if set, else a local one for this run."""
    transport: Literal["auto", "object_store", "collective"] = "auto"
    """How rows travel: to the coordinator through Ray's object store, or in pieces from worker to worker.

    With `collective` every worker holds the parameters and the optimizer, and the coordinator sees inner products only.
    `auto` takes it from a million parameters on, where every worker has a GPU of its own or workers live on several
    nodes.
    """
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Of torch.distributed, for `transport: collective`; `auto`: NCCL if every worker has a GPU of its own, else gloo.
    """
    replicas: Annotated[Count, Rule("an integer >= 1", "One worker per domain is `cluster.replicas=1`.")] = 1
    """Workers per domain, >= 1: they divide its batch, and their answers are those of one worker, to rounding."""
    cpus_per_worker: Annotated[Literal["auto"] | Positive, Rule("`auto` or a finite number > 0")] = "auto"
    """CPUs reserved per process, whole numbers above 1; `auto`: min(1, CPUs of the cluster / (sources + 1))."""
    gpus_per_worker: Annotated[Literal["auto"] | NonNegative, Rule("`auto` or a finite number >= 0")] = "auto"
    """GPUs reserved per domain worker, whole numbers above 1; `auto`: decided at start from what the cluster has.

    `auto` gives each domain a GPU, or as few shares of one GPU as needed; none where not all domains can have one.
    """
    autoscale: bool = False
    """Whether the cluster starts nodes when a run asks: what is missing is then waited for, `start_timeout_s` long.

    It needs numbers for `cpus_per_worker` and `gpus_per_worker`.
    """
    bundles: Bundles = Field(default_factory=dict)
    """What a domain asks of its node: per domain `resources: {NAME: amount}` and `labels: {KEY: VALUE}`, or nothing.

    So data can stay where they are: `cluster.bundles.hospital_a.resources.site_a=1` puts `hospital_a` on the node that
    was started with `--resources='{"site_a": 1}'`.
    """
    strategy: Literal["pack", "spread"] = "pack"
    """Whether domains share as few nodes as possible, or spread over as many as there are; Ray does its best."""
    step_timeout_s: Positive = 120.0
    """Seconds after which a domain that has not answered a step is restarted, > 0."""
    start_timeout_s: Positive = 120.0
    """Seconds that placing and starting all actors may take, > 0."""
    max_worker_restarts: Natural = 3
    """Restarts per domain before the run fails, >= 0."""
    object_store_mb: Annotated[
        Annotated[int, Field(ge=75)] | None, Rule("an integer >= 75 (MiB) or null", "Ray's own minimum is 75 MiB.")
    ] = None
    """Size of a local cluster's object store in MiB, >= 75; null: Ray decides."""


class LoaderConfig(Section):
    """Who makes the batches."""

    processes: Annotated[Literal["auto"] | Natural, Rule("`auto` or an integer >= 0")] = "auto"
    """Loader processes of each domain, >= 0; batches are the same for any number. 0: the worker makes its own.

    `auto`: 0 where pictures lie in memory and are not augmented, else the worker's threads less one, at least 1.
    """
    ahead: Count = 2
    """Batches that each loader process makes in advance, >= 1."""


class TrialConfig(Section):
    """How a sweep runs its trials; a single run does not read it."""

    engine: Literal["auto", "ray", "inline"] = "auto"
    """Engine of every trial; `auto`: that of `engine`. `inline` packs a trial into one process."""
    cpus: Positive = 1.0
    """CPUs reserved for a trial of the inline engine, > 0; those of the Ray engine take `cluster.cpus_per_worker`."""
    concurrent: Count | None = None
    """Most trials at the same time, >= 1; null: as many as the cluster has room for."""
    max_failures: Natural = 1
    """How often a trial whose process died is continued from its checkpoint, >= 0."""


class Config(Section):
    """One training run, completely."""

    name: Annotated[
        Annotated[str, Field(pattern=RUN_NAME)] | None,
        Rule(
            "at most 128 letters, digits, `.`, `_` or `-`, the first a letter or a digit",
            "Choose such a name, or leave it out for a unique one.",
        ),
    ] = None
    """Name of the run and its folder; null: `<dataset>-<rule>-<time>-<4 hex digits>`."""
    output: FilePath = Path("runs")
    """Folder that holds run folders."""
    seed: Seed = 0
    """Seed of everything that is drawn, in [0, 2^63)."""
    steps: Count = 300
    """Updates, >= 1."""
    batch_size: Count = 64
    """Examples per domain and step, >= 1."""
    engine: Literal["ray", "inline"] = "ray"
    """One Ray actor per source domain, or everything in the calling process with the same results."""
    dataset: Text = "digits"
    """A registered dataset."""
    dataset_options: Options = Field(default_factory=dict)
    """The dataset's own options."""
    root: FilePath | None = None
    """Folder with the dataset's files; null where it needs none."""
    image_size: Count | None = None
    """Side of square images in pixels, >= 1; null: the dataset decides."""
    augment: Text = "none"
    """Random changes to training pictures: `none`, `light`, `domainbed`, or a YAML file of Albumentations."""
    sampler: Literal["natural", "class_balanced", "domain_class_balanced"] = "natural"
    """Order of the examples: as they are, or the rarer a class is in all sources (in its domain) the more often."""
    loader: LoaderConfig = LoaderConfig()
    """Who makes the batches."""
    sources: Names = ("mnist", "optdigits", "fonts")
    """Domains that train, at least one, each once."""
    target: Text | None = "mnistm"
    """Domain that is held out and evaluated at the end; null: none."""
    observe: Names = ()
    """Domains that every evaluation looks at as well, whole, and by which nothing is chosen; the target may be one."""
    model: Text = "lenet"
    """A registered model, or `timm:NAME`."""
    model_options: Options = Field(default_factory=dict)
    """The model's own options, such as `weights` and `dropout`."""
    batch_norm: Literal["auto", "freeze", "mean", "per_domain"] = "auto"
    """Running statistics of BatchNorm: not moved, shared by the sources as their mean, or one set per source.

    `freeze`: BatchNorm normalises by the statistics that the model began with, in training too. `per_domain`: a source
    is evaluated with its own, the target with the mean. `auto`: `freeze` with `model_options.weights`, else `mean`.
    """
    precision: Literal["float32", "bf16"] = "float32"
    """What the featurizer computes in; the head, statistics, rows and parameters are float32 in any case."""
    loss: Text = "cross_entropy"
    """A registered classification loss."""
    loss_options: Options = Field(default_factory=dict)
    """The loss's own options."""
    objective: Text = "auto"
    """A registered objective; `auto`: `alignment.penalty` if alpha or beta is > 0, else the losses alone."""
    plugins: Annotated[
        tuple[Annotated[str, Field(pattern=MODULE)], ...],
        BeforeValidator(tuple_from_list),
        Rule("a list of dotted module names", "Write for example `plugins=my_package.my_module`."),
    ] = ()
    """Modules to import, here and in every worker, before names are looked up."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the direction becomes an update."""
    alignment: AlignmentConfig = AlignmentConfig()
    """The penalty on the spread between the source domains."""
    harmonize: HarmonizeConfig = HarmonizeConfig()
    """How rows that disagree are combined."""
    selection: Literal["last", "train_domain_val", "oracle"] = "train_domain_val"
    """Which evaluated step is the best one; `oracle` looks at the target and marks the run."""
    eval_every: Count = 50
    """Steps between two evaluations, >= 1."""
    profile: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        Rule("an integer in [1, 1000] or null", "Write for example `profile=10`, or leave it out."),
    ] = None
    """Steps whose times all actors write down in `profile.json`, in [1, 1000] and <= `steps`; null: none."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the training state is saved."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow is told about the run."""
    log_level: Literal["info", "debug"] = "info"
    """What the actors write into `logs/`: what happens, or besides that a line for every step."""
    cluster: ClusterConfig = ClusterConfig()
    """What Ray is asked for."""
    trial: TrialConfig = TrialConfig()
    """How a sweep runs its trials."""
    on_nonfinite: Literal["skip_step", "abort"] = "skip_step"
    """A step with non-finite numbers is left out, or ends the run."""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """An image file that cannot be read ends the run, or the next one of its class and split takes its place."""
    resume: Text | None = None
    """Run folder to continue, or `auto` for the newest one under `output`."""
