"""YAML without its traps: what a configuration file says is what a reader sees in it.

Differs from PyYAML's ``safe_load`` (YAML 1.1):

* plain scalars are read as YAML 1.2 does: ``1e-3`` is a number (1.1: text), ``on``, ``yes`` and ``1:30`` are text (1.1:
  true, true, 90), dates are text, and so is ``012`` (1.1: octal 10), which no numeric key then accepts;
* a key given twice is an error (there: the last one wins), as is a key that is not text (``on:`` is the key ``True``);
* tags (``!!python/...``) and merge keys (``<<``) are refused;
* a document nests at most 20 deep and holds at most 10,000 values with its aliases written out, and 1 MB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from difc_ray.config.problems import Problem
from difc_ray.secrets import masked

MAX_DEPTH = 20
MAX_VALUES = 10_000
MAX_BYTES = 1_000_000

FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
"""A decimal number with at most a point and an exponent."""

AMBIGUOUS = re.compile(r"[-+]?(?:0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9]+(?::[0-5]?[0-9])+(?:\.[0-9]*)?)")
"""What one version of YAML reads as a number in another base than ten, and another version as something else."""

_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)"), list("-+0123456789")),
    ("float", re.compile(rf"(?:{FLOAT.pattern}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"), list("-+.0123456789")),
)

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys, and positions in lists."""


@dataclass
class Document:
    """A YAML mapping with where everything in it was written.

    Args:
        data: the mapping in dicts, lists, text, int, float, bool and None.
        lines: line of every value, or of its key if it has one, from 1.
        plain: source text of every scalar written without quotes.
        problems: what is wrong and did not prevent reading on.
    """

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    plain: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class UnreadableError(Exception):
    """A document of which nothing can be used.

    Args:
        problem: the reason.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's plain scalars, without tags, and not beyond the caps."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source, self.depth, self.count = source, 0, 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """PyYAML's step for one value, which counts it and refuses tags."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        line = event.start_mark.line + 1
        if tag is not None:
            what = "Python tags are not allowed" if "python" in tag else "YAML tags are not allowed"
            got = f"`{tag.replace(_TAG, '!!')}`"
            raise UnreadableError(_problem(what, got, self.source, line, "Remove the tag."))
        self.depth, self.count = self.depth + 1, self.count + 1
        _check_caps(self.depth, self.count, self.source, line)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^{_pattern.pattern}$"), _first)


class Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML 1.1 or this module would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Everything is written out."""
        return True


for _name, _pattern, _first in _RESOLVERS:
    Dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"^{_pattern.pattern}$"), _first)


def read_file(path: Path) -> Document:
    """The mapping in a YAML file.

    Args:
        path: an ordinary UTF-8 file of at most 1 MB.

    Raises:
        UnreadableError: no such file, not an ordinary one, too large, not UTF-8, empty, not YAML, or one that does
            not hold a mapping.
    """

    def unreadable(what: str, got: str, remedy: str) -> UnreadableError:
        return UnreadableError(Problem(what=what, got=got, where=f"`{path}`", remedy=remedy))

    try:
        if path.is_dir():
            raise unreadable("the config file must be a file", "a directory", "Name the YAML file in it.")
        if not path.exists():
            raise unreadable("the config file must exist", "no such file", "Check the path given with --config.")
        if not path.is_file():
            raise unreadable("the config file must be an ordinary file", "a device or a pipe", "Save it to a file.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise unreadable("the config file must be at most 1 MB", f"{size:,} bytes", "Is it the right file?")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise unreadable("the config file must be UTF-8 text", got, "Save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        raise unreadable("the config file must be readable", str(error), "Check its path and permissions.") from error
    return read_text(text, str(path))


def read_text(text: str, source: str) -> Document:
    """The mapping in a YAML text.

    Args:
        text: one YAML document.
        source: where it comes from, for messages.

    Raises:
        UnreadableError: it is empty, not YAML, or not a mapping.

    >>> read_text("lr: 1e-3", "example").data
    {'lr': 0.001}
    """
    node = _compose(text, source)
    if node is None or (isinstance(node, ScalarNode) and node.tag == _TAG + "null"):
        remedy = "Write at least one `key: value`, or leave the file out."
        raise UnreadableError(
            Problem(what="the config file must hold keys", got="an empty file", where=source, remedy=remedy)
        )
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else f"the text `{masked(node.value)[:60]}`"
        line = node.start_mark.line + 1
        raise UnreadableError(
            _problem("the config file must be a mapping", kind, source, line, "Write `key: value` lines.")
        )
    document = Document()
    document.data = _Construct(document, source).value(node, (), 1)
    return document


def read_value(text: str, source: str) -> tuple[Any, dict[KeyPath, str]]:
    """One value in YAML, such as the right side of ``key=value``, and the source text of the plain scalars in it.

    Raises:
        UnreadableError: it is not YAML, or a mapping in it has a problem.

    >>> read_value("[1e-3, on]", "example")
    ([0.001, 'on'], {(0,): '1e-3', (1,): 'on'})
    """
    node = _compose(text, source)
    document = Document()
    value = None if node is None else _Construct(document, source).value(node, (), 1)
    if document.problems:
        raise UnreadableError(document.problems[0])
    return value, document.plain


def _compose(text: str, source: str) -> Node | None:
    """The tree of nodes of the one document in a text."""
    try:
        loader = _Loader(text, source)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        raise UnreadableError(
            Problem(
                what="the text must be printable",
                got=f"character {error.character!r} at position {error.position}",
                where=source,
                remedy="Remove the character.",
            )
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        if "single document" in (error.context or ""):
            what, got, remedy = "there must be one YAML document", "a second `---`", "Remove all but one."
        else:
            what, got, remedy = "the text must be valid YAML", _reason(error), "Check indentation, quotes and brackets."
        raise UnreadableError(_problem(what, got, source, line, remedy)) from error


class _Construct:
    """Nodes to plain Python, with line and source text of every value."""

    def __init__(self, document: Document, source: str) -> None:
        self.document, self.source, self.count = document, source, 0

    def value(self, node: Node, path: KeyPath, depth: int, line: int = 0) -> Any:
        """The value of a node; ``line`` is that of its key, if it has one: what is below it begins further down."""
        line = line or node.start_mark.line + 1
        self.count += 1
        _check_caps(depth, self.count, self.source, line)
        self.document.lines[path] = line
        if isinstance(node, MappingNode):
            return {key: self.value(item, (*path, key), depth + 1, at) for key, item, at in self._items(node)}
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.style is None:
            self.document.plain[path] = node.value
        return _scalar(node.tag.removeprefix(_TAG), node.value)

    def _items(self, node: MappingNode) -> Iterator[tuple[str, Node, int]]:
        """Keys, value nodes and the keys' lines; keys that are given twice or are not text become problems."""
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line, key = key_node.start_mark.line + 1, key_node.value
            if not isinstance(key_node, ScalarNode):
                self._refuse("config keys must be text", "a list or a mapping", line, "Write `key: value` lines.")
            elif key_node.style is None and key == "<<":
                self._refuse("merge keys are not supported", "`<<`", line, "Write the keys out.")
            elif key_node.style is None and (reading := _reading_1_1(key)):
                got = f"`{key}`" if reading == key else f"`{key}`, which YAML 1.1 reads as {reading}"
                self._refuse("config keys must be text", got, line, f'Quote it: "{key}".')
            elif key in seen:
                self._refuse(
                    f"key `{key}` is given twice", f"it in lines {seen[key]} and {line}", line, "Remove one of them."
                )
            else:
                seen[key] = line
                yield key, value_node, line

    def _refuse(self, what: str, got: str, line: int, remedy: str) -> None:
        self.document.problems.append(_problem(what, got, self.source, line, remedy))


def _scalar(kind: str, text: str) -> Any:
    """A scalar of one of the five kinds that the resolvers know."""
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text) if len(text) <= 40 else text
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _reading_1_1(key: str) -> str:
    """What a YAML 1.1 parser makes of a plain key that is not text to it; empty for text."""
    if not re.fullmatch(r"[-+.~\w:]+", key):
        return ""
    try:
        value = yaml.safe_load(f"[{key}]")[0]
    except (yaml.YAMLError, ValueError):  # such as the 30th of February
        return ""
    return "" if isinstance(value, str) else str(value)


def _reason(error: yaml.MarkedYAMLError) -> str:
    """The parser's own words, in one line."""
    words = " ".join(part for part in (error.context, error.problem) if part)
    return f'"{" ".join(words.split())}"'


def _check_caps(depth: int, count: int, source: str, line: int) -> None:
    """Refuses what only a mistake or an attack writes."""
    if depth > MAX_DEPTH:
        what, got = f"a config must nest at most {MAX_DEPTH} deep", "more"
        raise UnreadableError(_problem(what, got, source, line, "Look for an alias that contains itself."))
    if count > MAX_VALUES:
        what, got = f"a config must hold at most {MAX_VALUES:,} values, aliases written out", "more"
        raise UnreadableError(_problem(what, got, source, line, "Look for aliases of aliases."))


def _problem(what: str, got: str, source: str, line: int, remedy: str) -> Problem:
    return Problem(what=what, got=got, where=f"{source}, line {line}", remedy=remedy)
