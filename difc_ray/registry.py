"""A name -> object table: register once, get with "did you mean"."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from difc_ray.errors import ConfigError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, if one is near, and all of them.

    >>> did_you_mean("pcgard", ["mean", "pcgrad"])
    'Did you mean `pcgrad`? Known: mean, pcgrad.'
    >>> did_you_mean("art", ["art work", "cartoon"])
    'Did you mean `art work`? Known: art work, cartoon.'
    >>> did_you_mean("xyz", ["mean", "gh"])
    'Known: gh, mean.'
    """
    names = sorted(known)
    near = [each for each in names if len(name) > 2 and each.startswith(name)]
    near += difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean `{near[0]}`? " if near else ""
    return f"{hint}Known: {', '.join(names)}."


class Registry(Generic[T]):
    """Objects of one kind by name. A name with a colon, ``adapter:rest``, is what the adapter makes of the rest.

    Args:
        kind: what is registered, as the user calls it ("harmonizer"); used in messages.

    >>> colours: Registry[int] = Registry("colour")
    >>> _ = colours.register("red")(1)
    >>> colours.get("red")
    1
    >>> _ = colours.register("blue", aliases=("azure",))(2)
    >>> colours.get("azure"), colours.canonical("azure"), colours.names()
    (2, 'blue', ['blue', 'red'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._adapters: dict[str, Callable[[str], T]] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, *, aliases: Sequence[str] = (), options: type[Any] | None = None) -> Callable[[T], T]:
        """Decorator that stores the object under ``name``.

        Args:
            name: what users call it, and records hold.
            aliases: other names that it answers to, such as the one in its paper.
            options: a dataclass whose fields are its options (:mod:`difc_ray.options`); it becomes the object's
                ``option_type``. None: that of its base class, if there is one, else there are no options.

        Raises:
            ConfigError: ``options`` is no dataclass, or another object already has the name. (The same definition
                registered again, as when a plug-in module is imported a second time, replaces itself.)
        """
        if options is not None and not (isinstance(options, type) and dataclasses.is_dataclass(options)):
            raise ConfigError(
                f"The options of {self.kind} `{name}` must be a dataclass. Found {options!r}. "
                "Write `@dataclass(frozen=True, kw_only=True)` above the class."
            )

        def store(item: T) -> T:
            """Puts the object into the table, and gives it back with its ``option_type``."""
            if options is not None:
                item.option_type = options  # type: ignore[attr-defined]
            held = self._items.get(name)
            if held is not None and _definition(held) != _definition(item):
                raise ConfigError(
                    f"{self.kind} `{name}` is already registered by {_definition(held)}. "
                    "Register yours under another name."
                )
            self._items[name] = item
            self._aliases |= dict.fromkeys(aliases, name)
            return item

        return store

    def adapter(self, prefix: str) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
        """Decorator that stores a function from what follows ``prefix:`` to an object."""

        def store(make: Callable[[str], T]) -> Callable[[str], T]:
            self._adapters[prefix] = make
            return make

        return store

    def get(self, name: str) -> T:
        """The object of that name, or alias.

        Raises:
            ConfigError: no object has the name, or its adapter cannot make it; the message lists those there are.
        """
        prefix, colon, rest = name.partition(":")
        if colon and prefix in self._adapters:
            return self._adapters[prefix](rest)
        if (known := self.canonical(name)) not in self._items:
            raise ConfigError(f"Unknown {self.kind} `{name}`. {did_you_mean(name, self._items)}")
        return self._items[known]

    def canonical(self, name: str) -> str:
        """The registered name behind an alias; every other name as it is."""
        return name if name in self._items else self._aliases.get(name, name)

    def name_of(self, item: object) -> str:
        """The name of a registered object; its own name if it is not registered."""
        names = (name for name, held in self._items.items() if held is item)
        return next(names, getattr(item, "__name__", repr(item)))

    def title(self, item: object) -> str:
        """A registered object as messages call it, such as "loss `ldam`"."""
        return f"{self.kind} `{self.name_of(item)}`"

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        prefix, colon, _ = name.partition(":")
        return self.canonical(name) in self._items or (bool(colon) and prefix in self._adapters)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def _definition(item: object) -> str:
    """Where an object was defined: module and qualified name (its repr for plain values)."""
    module = getattr(item, "__module__", None)
    name = getattr(item, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(item)
