"""The methods of the Colored MNIST table: the settings of each, and what was published for it.

All of them share :data:`RECIPE`. Penalties, but those of :data:`DOMAINBED`, have weight 1 until step 190 and
:data:`LAMBDA` from there on, where the whole loss is divided by it; Adam is not started anew. What the scripts sum over
the two domains is `reduction: sum`; IRM's is a mean, and V-REx's ``(R_0 − R_1)²`` is four times the variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from difc_ray.errors import ConfigError
from difc_ray.objectives import OBJECTIVES
from difc_ray.registry import did_you_mean

LAMBDA: Final = 91257.18613115903
"""Weight of every penalty after the annealing."""

STEPS: Final = 501

RECIPE: Final[Mapping[str, Any]] = {
    "sources": ["e20", "e10"],
    "target": "e90",
    "observe": ["e90", "gray"],
    "model": "mlp",
    "model_options": {"hidden": [390, 390], "init": "xavier_uniform"},
    "loss": "bce",
    "steps": STEPS,
    "optimizer": {"name": "adam", "lr": 0.0004898536566546834, "l2": 0.00110794568},
    "alignment": {"scope": "head"},
    "selection": "last",
    "tracking": {"mode": "off"},
    "trial": {"engine": "inline"},
}
"""What all methods share, but for the batch, which is all of a domain's training examples.

Source: the defaults of ``cmnist_HGP.py`` and ``cmnist_Hutchinson.py``, which are IRM's ``reproduce_paper_results.sh``.
"""

_ANNEAL: Final = {
    "alignment.anneal.steps": 190,
    "alignment.anneal.weight_after": LAMBDA,
    "alignment.anneal.rescale_loss": True,
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published for a method: mean and population standard deviation over 10 restarts, in percent.

    Args:
        train: accuracy on the training domains.
        test: on the test domain.
        gray: without colour; None: not told.
    """

    train: tuple[float, float]
    test: tuple[float, float]
    gray: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Args:
        name: as `--methods` has it.
        about: what it is, in a few words.
        values: dotted key -> value, above the recipe.
        against: the method that its test accuracy is compared with, restart by restart; empty: none.
        published: what was published for it.
    """

    name: str
    about: str
    values: Mapping[str, Any] = field(default_factory=dict)
    against: str = "erm"
    published: Published | None = None


def _penalty(penalty: str, **alignment: Any) -> dict[str, Any]:
    given = {f"alignment.{key}": value for key, value in alignment.items()}
    return {"objective": penalty, "alignment.penalty": penalty, "harmonize.rule": "mean", **_ANNEAL, **given}


def _aligned(penalty: str, **alignment: Any) -> dict[str, Any]:
    return _penalty(penalty, **{"alpha": 1.0, "beta": 1.0, "reduction": "sum", **alignment})


_PROBES: Final = {"estimator": "hutchinson", "probes": 150}

PLAIN: Final = (
    Method(
        name="erm", about="no penalty", against="", values={"objective": "erm", "harmonize.rule": "mean"},
        published=Published(train=(86.4, 0.2), test=(14.0, 0.7), gray=(71.0, 0.7)),
    ),
    Method(
        name="irm", about="invariant risk minimisation", values=_penalty("irm", alpha=1.0, beta=0.0),
        published=Published(train=(71.0, 0.5), test=(65.6, 1.8), gray=(66.1, 0.2)),
    ),
    Method(
        name="vrex", about="equal losses", values=_penalty("vrex", alpha=4.0, beta=0.0),
        published=Published(train=(71.7, 1.5), test=(67.2, 1.5), gray=(68.6, 2.2)),
    ),
    Method(
        name="fishr", about="equal variances of gradients",
        values=_penalty("fishr", alpha=1.0, beta=0.0, reduction="sum"),
        published=Published(train=(71.0, 0.9), test=(69.5, 1.0), gray=(70.2, 1.1)),
    ),
    Method(
        name="hgp", about="Hessian-gradient products and gradients", values=_aligned("hgp", detach_mean=False),
        published=Published(train=(71.0, 1.5), test=(69.4, 1.3)),
    ),
    Method(
        name="hutchinson", about="Hessian diagonals and gradients, 150 probes per domain and 150 for the mean",
        values=_aligned("hutchinson", probe_sets="released", detach_mean=False, **_PROBES),
        published=Published(train=(61.7, 1.9), test=(74.0, 1.2)),
    ),
    Method(
        name="hutchinson_exact", about="the same with the exact diagonals", values=_aligned("hutchinson"),
        against="hutchinson",
    ),
    Method(
        name="hutchinson_shared", about="the same with 150 probes that the domains share",
        values=_aligned("hutchinson", probe_sets="shared", **_PROBES), against="hutchinson",
    ),
    Method(name="gradient", about="gradients alone", values=_aligned("gradient", alpha=0.0)),
    Method(name="hessian", about="exact Hessian diagonals alone", values=_aligned("hutchinson", beta=0.0)),
)  # fmt: skip


def _of_domainbed(penalty: str) -> dict[str, Any]:
    return {"objective": penalty, "alignment.penalty": penalty, "harmonize.rule": "mean", "alignment.alpha": 1.0,
            "alignment.beta": 0.0}  # fmt: skip


DOMAINBED: Final = (
    Method(
        name="coral", about="equal means and covariances of the features, weight 1, not annealed",
        values=_of_domainbed("coral"),
    ),
    Method(
        name="mmd", about="equal distributions of the features, weight 1, not annealed", values=_of_domainbed("mmd"),
    ),
    Method(
        name="dann_domain", about="features that do not tell the domain, weight 1, not annealed",
        values=_of_domainbed("dann_domain"),
    ),
    Method(
        name="mixup", about="mixed domains, Beta(0.2, 0.2)",
        values={"objective": "mixup", "harmonize.rule": "mean", "alignment.mixup": 0.2},
    ),
    Method(
        name="group_dro", about="weights that grow with the losses, rate 0.01",
        values={"objective": "erm", "harmonize.rule": "group_dro", "harmonize.options.rate": 0.01},
    ),
)  # fmt: skip
"""What DomainBed compares with, with its own default hyper-parameters on our recipe; nothing was published for it here.

Source: ``domainbed/hparams_registry.py``: `mmd_gamma` 1 (CORAL, MMD), `lambda` 1 (DANN), `mixup_alpha` 0.2,
`groupdro_eta` 0.01. Penalties are not annealed there.
"""

RULES: Final = {"gh": "gh", "ghpp": "ghpp"}
"""What may follow a `+` -> rule between the penalty and the classification."""

_UNPENALISED: Final = tuple(
    method.name for method in (*PLAIN, *DOMAINBED) if not OBJECTIVES.get(method.values["objective"]).has_penalty
)

METHODS: Final = {method.name: method for method in (*PLAIN, *DOMAINBED)} | {
    f"{method.name}+{rule}": Method(
        name=f"{method.name}+{rule}", about=f"{method.about}; {rule} between penalty and classification",
        values={**method.values, "harmonize.rule": rule, "harmonize.between": "tasks"}, against=method.name,
    )
    for method in (*PLAIN, *DOMAINBED) if method.name not in _UNPENALISED for rule in RULES
}  # fmt: skip

DEFAULT: Final = tuple(method.name for method in PLAIN)


def methods_of(names: str | None) -> list[Method]:
    """The methods of a list with commas, in its order; None: those without a rule.

    Raises:
        ConfigError: one is unknown, or given twice, or there are none.
    """
    given = DEFAULT if names is None else tuple(name.strip() for name in names.split(",") if name.strip())
    for name in given:
        if "+" in name and name.split("+")[0] in _UNPENALISED:
            raise ConfigError(
                f"a rule harmonizes a penalty with the classification, got `{name}` without a penalty (--methods). "
                f"Take `{name.split('+')[0]}`, or {_some()}."
            )
        if name not in METHODS:
            raise ConfigError(f"a method must be known, got `{name}` (--methods). {did_you_mean(name, METHODS)}")
        if given.count(name) > 1:
            raise ConfigError(f"a method is given once, got `{name}` again (--methods). Remove the repetition.")
    if not given:
        raise ConfigError(f"`--methods` must name a method, got nothing (--methods). Take {_some()}.")
    return [METHODS[name] for name in given]


def _some() -> str:
    return "for example `--methods erm,hutchinson_exact,hutchinson_exact+gh`"
