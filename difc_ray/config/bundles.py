"""What single domains ask of the node that they live on: `cluster.bundles`, read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from difc_ray.config.keys import Config
from difc_ray.config.problems import show
from difc_ray.nested import flat
from difc_ray.registry import did_you_mean

KINDS = ("resources", "labels")
"""What a bundle may name."""

OWN_KEYS = {"CPU": "cluster.cpus_per_worker", "GPU": "cluster.gpus_per_worker"}
"""Resources that have keys of their own, the same for every domain (and so the same threads, and the same bits)."""

_LABEL_KEY = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a domain asks of its node besides CPUs and GPUs.

    Args:
        resources: custom resources, reserved for the domain as long as it lives.
        labels: labels that the node must have.
    """

    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As in ``site_a 1 and label zone=east``."""
        return " and ".join(
            [f"{name} {amount:g}" for name, amount in self.resources.items()]
            + [f"label {key}={value}" for key, value in self.labels.items()]
        )


def wishes(config: Config) -> dict[str, Wish]:
    """What the sources ask for, of a configuration that :func:`bundle_faults` finds nothing wrong with."""
    return {
        domain: Wish(
            resources={name: float(value) for name, value in flat(bundle.get("resources") or {}).items()},
            labels={name: str(value) for name, value in flat(bundle.get("labels") or {}).items()},
        )
        for domain, bundle in config.cluster.bundles.items()
        if domain in config.sources
    }


def bundle_faults(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Everything wrong with `cluster.bundles`: rule, value found, remedy and the key it is about."""
    for domain, bundle in config.cluster.bundles.items():
        key = f"cluster.bundles.{domain}"
        if domain not in config.sources:
            yield "`cluster.bundles` must name source domains", f"`{domain}`", did_you_mean(domain, config.sources), key
            continue
        if not isinstance(bundle, dict) or not bundle:
            what = f"`{key}` must hold `resources` or `labels`"
            yield what, show(bundle), f"Write for example `{key}.resources.site_a=1`.", key
            continue
        for kind, named in bundle.items():
            if kind not in KINDS:
                yield f"`{key}` must hold `resources` or `labels`", f"`{kind}`", did_you_mean(kind, KINDS), key
            elif not isinstance(named, dict) or not named:
                example = "site_a=1" if kind == "resources" else "zone=east"
                what = f"`{key}.{kind}` must be a mapping from names to values"
                yield what, show(named), f"Write for example `{key}.{kind}.{example}`.", f"{key}.{kind}"
            else:
                check = _resource_fault if kind == "resources" else _label_fault
                for name, value in flat(named).items():
                    yield from check(f"{key}.{kind}.{name}", name, value)


def _resource_fault(key: str, name: str, value: Any) -> Iterator[tuple[str, str, str, str]]:
    """Whether a resource may be asked for in this amount."""
    if name in OWN_KEYS:
        remedy = f"Write `{OWN_KEYS[name]}`, and name the domain's node by a resource or a label of its own."
        yield f"`{name}` must be the same for every domain", f"`{key}`", remedy, key
    elif isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        yield f"`{key}` must be a number > 0", show(value), f"Write for example `{key}=1`.", key
    elif value > 1 and value != int(value):
        yield f"`{key}` above 1 must be a whole number", show(value), f"Write `{key}={int(value)}`.", key


def _label_fault(key: str, name: str, value: Any) -> Iterator[tuple[str, str, str, str]]:
    """Whether Ray would take the label."""
    if not _LABEL_KEY.fullmatch(name):
        yield "the name of a label must be letters, digits, `.`, `_` or `-`", f"`{name}`", "Correct the name.", key
    elif isinstance(value, bool | float) or not _LABEL_VALUE.fullmatch(str(value)):
        what = f"`{key}` must be text of at most 63 letters, digits, `.`, `_` or `-`"
        yield what, show(value), "Write the label as the node has it, in quotes if it looks like a number.", key
