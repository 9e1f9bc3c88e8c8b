"""Style and common parts of all figures.

Figures are :class:`matplotlib.figure.Figure` objects made without ``pyplot``: no global state, no window, no leak.
Importing this module imports matplotlib, so modules that draw are imported where something is drawn.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f4f24", "#4d4d4d")
"""Okabe and Ito's colours, distinguishable with every form of colour vision, without the pale yellow."""
LINES: Final = ("-", "--", ":", "-.")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
GREY: Final = "#9a9a9a"
INK: Final = "#333333"
DPI: Final = 130

_CHARACTERS_PER_INCH = 11
"""Of a legend."""


def new_figure(width: float, height: float, dpi: int = DPI) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def canvas(width: float, height: float, dpi: int = DPI) -> tuple[Figure, Axes]:
    """A figure of so many inches with one panel."""
    figure = new_figure(width, height, dpi)
    return figure, tidy(figure.subplots())


def tidy(axes: Axes) -> Axes:
    """A panel without a frame, over a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def colour_of(index: int) -> str:
    """The colour of the n-th line, from 0."""
    return COLOURS[index % len(COLOURS)]


def line_of(index: int) -> str:
    """The dashes of the n-th line, from 0: others once all colours were used."""
    return LINES[index // len(COLOURS) % len(LINES)]


def marker_of(index: int) -> str:
    """The marker of the n-th line, from 0."""
    return MARKERS[index % len(MARKERS)]


def whole_numbers(axis: Axis, most: int = 7) -> None:
    """At most so many round ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=most, steps=[1, 2, 5, 10]))


def percent(axis: Axis) -> None:
    """Shares from 0 to 1 as per cent; with a decimal where the ticks are close."""
    close = float(np.ptp(axis.get_view_interval())) < 0.05
    axis.set_major_formatter(PercentFormatter(1.0, decimals=1 if close else 0))


def legend_beside(figure: Figure, title: str = "") -> None:
    """Right of the panels, where it covers nothing; none where nothing has a name."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, title=title or None)


def legend_below(figure: Figure) -> None:
    """Below the panels, in as many columns as fit; none where nothing has a name."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        fitting = int(figure.get_figwidth() * _CHARACTERS_PER_INCH) // (max(map(len, labels)) + 5)
        columns = max(1, min(4, fitting))
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=columns)


def short(name: str, longest: int = 22) -> str:
    r"""A name as it fits beside an axis: the middle of a long one is left out, and a dollar begins no formula.

    >>> short("cat"), short("a" * 20 + "b" * 20), short("US$")
    ('cat', 'aaaaaaaaaaa…bbbbbbbbbb', 'US\\$')
    """
    if len(name) > longest:
        name = f"{name[: longest // 2]}…{name[-(longest // 2 - 1) :]}"
    return name.replace("$", r"\$")
