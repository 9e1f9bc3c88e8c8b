"""Options as dataclasses: what is taken, what is refused, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from difc_ray.errors import ConfigError
from difc_ray.objectives.losses import LOSSES
from difc_ray.options import (
    REQUIRED,
    Count,
    FilePath,
    NoOptions,
    Rule,
    UnitInterval,
    documentation,
    make_options,
    option_type,
)
from difc_ray.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Given:
    """Options of every kind."""

    size: Count = 3
    """Sides
    of the thing, >= 1."""
    share: UnitInterval = 0.5
    kind: Literal["a", "b"] = "a"
    file: FilePath | None = None
    """A file; null: none."""
    layers: tuple[int, ...] = (8, 4)
    odd: Annotated[int | None, Field(ge=1), Rule("an odd number", "Write 7.")] = None
    on: bool = False
    note: str = "none"


def made(**given: Any) -> Given:
    return make_options(Given, given, "thing `x`", "thing_options")


def test_values_keep_their_type() -> None:
    assert made() == Given()
    found = made(size=2, share=1, kind="b", file="~/a b", layers=[1, 2], odd=5, on=True, note="1")
    assert found == Given(size=2, share=1.0, kind="b", file=Path("~/a b"), layers=(1, 2), odd=5, on=True, note="1")
    assert type(found.share) is float
    assert type(made(file=None).file) is type(None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"siez": 1}, "Unknown option `siez` of thing `x`. Did you mean `size`? Known: file, kind, layers, note, odd,"),
        ({"size": 0}, "`thing_options.size` must be an integer >= 1, got 0 (thing `x`). The default is 3."),
        ({"size": 2.0}, "`thing_options.size` must be an integer >= 1, got 2.0 (thing `x`). The default is 3."),
        ({"size": True}, "`thing_options.size` must be an integer >= 1, got True (thing `x`). The default is 3."),
        ({"share": 1.5}, "`thing_options.share` must be a number in [0, 1], got 1.5 (thing `x`). The default is 0.5."),
        (
            {"share": None},
            "`thing_options.share` must be a number in [0, 1], got None (thing `x`). The default is 0.5.",
        ),
        ({"kind": "c"}, "`thing_options.kind` must be one of `a`, `b`, got 'c' (thing `x`). The default is a."),
        ({"file": ""}, "`thing_options.file` must be a path or null, got '' (thing `x`). Correct it or leave it out."),
        ({"layers": 8}, "`thing_options.layers` must be a list, got 8 (thing `x`). The default is [8, 4]."),
        ({"layers": ["8"]}, "`thing_options.layers` must be a list, got ['8'] (thing `x`). The default is [8, 4]."),
        ({"odd": 0}, "`thing_options.odd` must be an odd number, got 0 (thing `x`). Write 7."),
        ({"on": 1}, "`thing_options.on` must be true or false, got 1 (thing `x`). Write `true` or `false`."),
        ({"note": 1}, "`thing_options.note` must be text, got 1 (thing `x`). The default is none."),
    ],
)
def test_what_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**given)
    assert str(caught.value).startswith(sentence)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made(size=0, nope=1, share="much")
    with pytest.raises(ConfigError, match=r"`note` must be text, got \['s3://\*\*\*@host'\] \(thing `x`\)"):
        make_options(Given, {"note": ["s3://me:pw@host"]}, "thing `x`")
    for words in ("`thing_options.size` must be", "Unknown option `nope`", "`thing_options.share` must be"):
        assert words in str(caught.value)


def test_options_without_a_key_and_required_ones() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy:
        alpha: float
        beta: float

    with pytest.raises(ConfigError, match=r"^Rule `y` needs its options `alpha`, `beta`\.$"):
        make_options(Needy, {}, "rule `y`")
    assert [row[2] for row in documentation(Needy)] == [REQUIRED, REQUIRED]
    with pytest.raises(ConfigError, match=r"^Unknown option `a` of rule `z`\. It takes no options\.$"):
        make_options(NoOptions, {"a": 1}, "rule `z`")


def test_documentation() -> None:
    rows = {name: (rule, default, meaning) for name, rule, default, meaning in documentation(Given)}
    assert rows["size"] == ("an integer >= 1", 3, "Sides of the thing, >= 1.")
    assert rows["file"] == ("a path or null", None, "A file; null: none.")
    assert rows["share"] == ("a number in [0, 1]", 0.5, "")
    assert list(rows) == ["size", "share", "kind", "file", "layers", "odd", "on", "note"]
    assert documentation(option_type(LOSSES.get("difc")))[3][2] is True  # inherited, with another default


def test_a_registered_class_says_its_options() -> None:
    registry: Registry[type] = Registry("thing")

    @registry.register("x", options=Given)
    class Thing:
        pass

    class Other(Thing):
        pass

    assert option_type(Thing) is option_type(Other) is Given
    assert option_type(int) is NoOptions
    assert registry.title(Thing) == "thing `x`"
    assert registry.title(Other) == "thing `Other`"
    with pytest.raises(ConfigError, match=r"The options of thing `y` must be a dataclass\. Found <class 'int'>"):
        registry.register("y", options=int)
