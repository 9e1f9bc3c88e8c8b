"""A real browser without a window and without a network: screenshots, sizes, and what a page asks for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.ports import free_port

REQUIRED = "DIFC_RAY_BROWSER_TESTS"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """Chromium with an empty profile for each page, behind a proxy that is not there: nothing leaves the machine.

    Args:
        command: its path.
        folder: where profiles and screenshots go.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command = command
        self.folder = folder
        self.proxy = free_port()
        self._pages = 0

    def screenshot(self, page: Path, width: int, height: int) -> np.ndarray:
        """The pixels of a page, (height, width, 3)."""
        target = self.folder / f"shot-{width}.png"
        self._run(page, f"--screenshot={target}", f"--window-size={width},{height}")
        with Image.open(target) as image:
            return np.asarray(image.convert("RGB"))

    def measure(self, page: Path, width: int, *flags: str, extra: str = "") -> dict[str, Any]:
        """Sizes in a copy of the page that has a script (and `extra` markup) at its end, in CSS pixels."""
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
        copy = self.folder / f"copy-{self._pages}.html"
        copy.write_text(text.replace("</body>", f"{extra}<script>{_SCRIPT}</script></body>"), "utf-8")
        frame = self.folder / f"frame-{self._pages}.html"  # a window cannot be as narrow as a phone, a frame can
        frame.write_text(_FRAME.format(width=width, copy=copy.as_uri()), "utf-8")
        dom = self._run(frame, "--dump-dom", "--virtual-time-budget=5000", "--window-size=1600,1000", *flags)
        found = re.search(r'data-measured="([^"]*)"', dom)
        assert found, dom[-2000:]
        measured: dict[str, Any] = json.loads(found[1].replace("&quot;", '"'))
        return measured

    def _run(self, page: Path, *flags: str) -> str:
        self._pages += 1
        profile = self.folder / f"profile-{self._pages}"
        done = subprocess.run(
            [self.command, *FLAGS, f"--proxy-server=127.0.0.1:{self.proxy}", f"--user-data-dir={profile}",
             *flags, page.as_uri()],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        shutil.rmtree(profile, ignore_errors=True)
        return done.stdout


_SCRIPT = """
addEventListener("load", () => {
  const root = document.documentElement, boxes = [...document.querySelectorAll(".scroll")];
  parent.postMessage(JSON.stringify({
    window: innerWidth, page: root.scrollWidth, shown: root.clientWidth,
    images: [...document.images].map(image => image.complete ? image.naturalWidth : 0),
    beyond: [...document.querySelectorAll("header, section, figure, img, .scroll, .verdict, footer")]
      .filter(element => element.getBoundingClientRect().right > root.clientWidth + 0.5)
      .map(element => element.tagName),
    scrolling: boxes.map(box => box.scrollWidth > box.clientWidth),
    smallest: Math.min(...[...document.querySelectorAll("p, td, li, figcaption")]
      .map(element => parseFloat(getComputedStyle(element).fontSize))),
    asked: performance.getEntriesByType("resource").map(entry => entry.name),
    paper: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
"""


def find_browser() -> str:
    """The path of a browser; without one the test is skipped, or fails where browsers are required."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        told = f"none of {', '.join(NAMES)} is installed"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{told}, and {REQUIRED}=1 requires one")
        pytest.skip(told)
    return found


_FRAME = """<!doctype html><body>
<script>addEventListener("message", event => document.body.setAttribute("data-measured", event.data))</script>
<iframe src="{copy}" style="width: {width}px; height: 900px; border: 0"></iframe></body>"""
