"""README and docs/: links that lead somewhere, pages for every method, a README that is read in one sitting."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from difc_ray import __version__
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.objectives import OBJECTIVES
from difc_ray.objectives.losses import LOSSES
from tests.documents import ROOT, anchors, documents, generated, links

TEXTS = documents()


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dead_links(name: str, text: str) -> list[str]:
    """The relative links of a document that lead to nothing in the repository."""
    dead = []
    for path, fragment in links(text):
        target = os.path.normpath(Path(name).parent / path) if path else name
        file = (ROOT / target).is_file() or (not name.startswith("docs/") and (ROOT / target).is_dir())
        headings = anchors(TEXTS.get(target, "") if path else text)
        if (path and (not file or generated(target))) or (
            fragment and target.endswith(".md") and fragment not in headings
        ):
            dead.append(f"{path}#{fragment}" if fragment else path)
    return dead


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    assert dead_links(name, TEXTS[name]) == []


def test_a_dead_link_would_be_found() -> None:
    text = "[a](nowhere.md), [b](../README.md), [c](#here), `[d](code.md)`\n```\n[e](block.md)\n```\n[f](../clusters/)"
    assert dead_links("docs/x.md", text + "[g](methods/rules/gh.md)") == [
        "nowhere.md", "#here", "../clusters/", "methods/rules/gh.md",
    ]  # fmt: skip
    assert "one-step" in anchors("## One `step`?\n")


def test_every_method_has_a_page(generator: ModuleType, tmp_path: Path) -> None:
    generator.write_pages(tmp_path)
    for kind, registry in (("rules", HARMONIZERS), ("objectives", OBJECTIVES), ("losses", LOSSES)):
        written = {path.stem for path in (tmp_path / "methods" / kind).glob("*.md")}
        assert written == {*registry, "index"}
    page = (tmp_path / "methods" / "rules" / "ghpp.md").read_text("utf-8")
    assert "\n## Differs from the source\n\n1. Eq. 34 writes" in page
    assert "\n`harmonize.options.s_min=0.05`\n: " in page
    assert "\n`loss_options.max_margin=0.3`\n: " in (tmp_path / "methods" / "losses" / "difc.md").read_text("utf-8")
    keys = (tmp_path / "reference" / "configuration.md").read_text("utf-8")
    assert "\n`optimizer.lr=0.001`\n: Learning rate, > 0." in keys
    assert "| 6 | A checkpoint" in (tmp_path / "reference" / "exit-codes.md").read_text("utf-8")
    ignored = [f"docs/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*.md")]
    asked = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(asked.stdout.split()) == sorted(ignored) or not (ROOT / ".git").exists()


def test_links_of_copied_pages_lead_to_pages(generator: ModuleType) -> None:
    text = "[faults](tests/FAULTS.md#x), [a](clusters/aws.yaml), [folder](clusters/), [web](https://ray.io)"
    there = ROOT / "docs" / "project" / "security.md"
    assert generator.relinked(text, ROOT, there) == (
        "[faults](faults.md#x), [a](../../clusters/aws.yaml), folder, [web](https://ray.io)"
    )
    assert generator.relinked("[s](../../SECURITY.md) [t](cluster.md)", ROOT / "docs" / "how-to") == (
        "[s](../project/security.md) [t](cluster.md)"
    )


def test_readme_is_read_in_one_sitting() -> None:
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 250
    assert len(text.split()) <= 1800
    assert "Status: alpha" in "\n".join(text.splitlines()[:10])


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {__version__} - " in TEXTS["CHANGELOG.md"]
    assert f"({__version__})" in TEXTS["README.md"]
