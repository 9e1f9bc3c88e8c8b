"""Sphinx's settings: Markdown by MyST, the theme furo, and the pages that :mod:`generate` writes before every build.

``make docs`` builds the pages; every warning is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import generate  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = author = "difc_ray"
project_copyright = "2026, the difc_ray authors"
version = release = generate.version()

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
highlight_language = "none"  # most blocks are terminals; Python and YAML say so

html_theme = "furo"
html_title = f"difc_ray {release}"
html_static_path = ["_static"]
html_css_files = ["difc_ray.css"]
html_copy_source = False

generate.write_pages(DOCS)


def lead_out(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links of a page to files outside of docs/ are sent to the page that is made of such a file."""
    source[0] = generate.relinked(source[0], (DOCS / docname).parent)


def setup(app: Sphinx) -> None:
    """Connects :func:`lead_out`; Sphinx calls this first."""
    app.connect("source-read", lead_out)
