"""The kinds of values that a configuration holds, each with the rule that an error message quotes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from difc_ray.options import Rule


class Section(BaseModel):
    """Base of the tree's nodes: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def tuple_from_list(value: object) -> object:
    """YAML and JSON know lists only."""
    return tuple(value) if isinstance(value, list) else value


def _plain(value: object) -> Any:
    """A copy in dicts, lists and scalars.

    Raises:
        ValueError: something else is in it, which a YAML file could not give back.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is not text")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("not text, a finite number, true, false, null, a list or a mapping")


Seed = Annotated[int, Field(ge=0, lt=2**63), Rule("an integer in [0, 2^63)")]

_ONE_LINE = r"^[^\x00-\x1f\x7f]+$"
Text = Annotated[str, Field(pattern=_ONE_LINE), Rule("non-empty text on one line")]
Names = Annotated[
    tuple[Annotated[str, Field(pattern=_ONE_LINE)], ...], BeforeValidator(tuple_from_list), Rule("a list of names")
]
Options = Annotated[
    dict[str, Any],
    AfterValidator(_plain),
    Rule("a mapping from names to text, finite numbers, true, false, null, lists or mappings"),
]
Bundles = Annotated[
    dict[str, Any],
    AfterValidator(_plain),
    Rule(
        "a mapping from source domains to `resources` and `labels`",
        "Write for example `cluster.bundles.DOMAIN.resources.site_a=1`.",
    ),
]

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What a run may be called: it names a folder, and it travels in paths and addresses."""

MODULE = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
"""A dotted module name."""

ADDRESS = r"^(auto|local|(ray://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})$"
"""What ``ray.init`` takes as an address."""
