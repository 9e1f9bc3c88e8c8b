"""The documents of the repository: README, the pages of docs/ that are written by hand, and those beside them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GENERATED = ("docs/project/", "docs/methods/rules/", "docs/methods/objectives/", "docs/methods/losses/")
"""Folders that docs/generate.py fills; git does not know them."""

GENERATED_PAGES = tuple(
    f"docs/reference/{name}.md" for name in ("commands", "configuration", "exit-codes", "options", "python")
)
"""And single pages."""


def documents() -> dict[str, str]:
    """Every document by its path."""
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "tests/FAULTS.md")]
    paths += sorted((ROOT / "docs").rglob("*.md"))
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    return {name: text for name, text in texts.items() if not generated(name)}


def generated(name: str) -> bool:
    """Whether a page is written by docs/generate.py."""
    return name.startswith(GENERATED) or name in GENERATED_PAGES


def pages() -> dict[str, str]:
    """README and the pages of docs/."""
    return {name: text for name, text in documents().items() if name.startswith(("README", "docs/"))}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; those of a terminal have none."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [inside for name, inside in fenced if name == language]


def links(text: str) -> list[tuple[str, str]]:
    """Path and fragment of every relative link that is no code; one of both may be empty."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    return re.findall(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]*))?\)", prose)


def anchors(text: str) -> set[str]:
    """What a link may name after `#`: the headings, as code hosts and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {each.strip().replace(" ", "-") for each in plain}
