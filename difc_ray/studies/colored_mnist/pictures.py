"""Pictures: accuracy against step, and what the distances between training domains tell of the test domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from difc_ray.comparison.statistics import correlation
from difc_ray.plotting import legend_beside, new_figure, percent, tidy
from difc_ray.studies.colored_mnist.checkpoints import Measured
from difc_ray.studies.colored_mnist.running import Reproduction, Run, StepAccuracies
from difc_ray.studies.colored_mnist.table import title_of

COLOURS = (
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5", "#ff8ab7", "#9498a0",
    "#1f5c3f", "#7b2d43", "#b8860b", "#222222", "#00798c",
)  # fmt: skip
STYLES = {"": ("-", "o"), "gh": ("--", "s"), "ghpp": (":", "^")}
"""Line and marker by what follows the `+`; the colour is that of what precedes it."""

CEILING = 0.75

BANDS = 8
"""With more methods than these, bands around the lines would hide each other."""


class Picture:
    """Panels side by side with accuracies on their vertical axes, and the methods' names beside them.

    Args:
        found: what is shown.
        n: panels.
        inches: width and height.
        shared: whether the panels have one vertical axis.
    """

    def __init__(self, found: Reproduction, n: int, inches: tuple[float, float], *, shared: bool) -> None:
        self.title, self.figure = title_of(found), new_figure(*inches)
        self.panels = np.atleast_1d(self.figure.subplots(1, n, sharey=shared))

    def finished(self, about: str, accuracy: str) -> Figure:
        """The picture with all that is said around the panels, once they have been drawn.

        Args:
            about: what is shown, after the title.
            accuracy: the name of the vertical axis.
        """
        for axes in self.panels:
            tidy(axes)
            percent(axes.yaxis)
        first = self.panels[0]
        first.set_ylabel(accuracy)
        self.figure.suptitle(f"{self.title}: {about}", fontsize=11)
        legend_beside(self.figure)
        return self.figure


def accuracy_curves(found: Reproduction) -> Figure:
    """Accuracy on the training domains, the test domain and without colour over training; a line per method."""
    panels: Sequence[tuple[str, Callable[[StepAccuracies], float]]] = (
        ("training domains", lambda moment: moment.train),
        ("test domain", lambda moment: moment.test),
        ("without colour", lambda moment: moment.gray),
    )
    picture = Picture(found, len(panels), (13.0, 4.6), shared=False)
    styles, banded = _styles(found), len(found.request.methods) <= BANDS
    for axes, (name, of) in zip(picture.panels, panels, strict=True):
        for method in found.request.methods:
            runs = found.of(method.name)
            if not runs:
                continue
            steps = [moment.step for moment in runs[0].moments]
            values = np.array([[of(moment) for moment in run.moments] for run in runs])
            mean, spread = values.mean(0), values.std(0)
            colour, dash, _ = styles[method.name]
            axes.plot(steps, mean, color=colour, linestyle=dash, label=method.name)
            if banded:
                axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        low, high = axes.get_ylim()
        axes.axhline(CEILING, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_ylim(low, high)  # the ceiling is shown where it is near
        for step in _annealed(found):
            axes.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="updates")
    band = ", band of one standard deviation" if banded else ""
    return picture.finished(f"mean over restarts{band}", "accuracy")


def distance_scatter(found: Reproduction) -> Figure:
    """Distance between the training domains' gradients and Hessians at the head against accuracy on the test domain.

    Large points are the ends of runs, small ones states on the way there; the coefficients are of either.

    Source: Hemati et al. 2023, whose poster has the correlation over training for its two methods.
    Differs from the source: the distance is the spectral norm of the difference of the whole Hessians of the head, the
    same for every method.
    """
    panels: Sequence[tuple[str, Callable[[Measured], float]]] = (
        ("Hessian distance ‖H_a − H_b‖₂", lambda distance: distance.hessian),
        ("gradient distance ‖g_a − g_b‖₂", lambda distance: distance.gradient),
    )
    picture = Picture(found, len(panels), (11.0, 5.2), shared=True)
    styles = _styles(found)
    for axes, (name, of) in zip(picture.panels, panels, strict=True):
        ends: list[tuple[float, float]] = []
        way: list[tuple[float, float]] = []
        for method in found.request.methods:
            points = [_points(run, of) for run in found.of(method.name)]
            last = [each[-1] for each in points if each]
            before = [pair for each in points for pair in each[:-1]]
            ends, way = ends + last, way + before + last
            colour, _, marker = styles[method.name]
            if before:
                axes.plot(*zip(*before, strict=True), marker, color=colour, markersize=3, alpha=0.35, linestyle="none")
            if last:
                axes.plot(*zip(*last, strict=True), marker, color=colour, markersize=8, markeredgecolor="white",
                          linestyle="none", label=method.name)  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlabel=name)
        axes.set_title(f"ends: {_told(ends)}\nall: {_told(way)}", fontsize=9, loc="left")
    return picture.finished("distance between the training domains, and transfer", "accuracy on the test domain")


def _annealed(found: Reproduction) -> list[int]:
    """The updates after which the weight of a penalty changes, within the runs."""
    every = found.base.alignment.anneal.steps
    steps = {int(method.values.get("alignment.anneal.steps", every)) for method in found.request.methods}
    return sorted(step for step in steps if 0 < step < found.base.steps)


def _points(run: Run, of: Callable[[Measured], float]) -> list[tuple[float, float]]:
    """(distance, test accuracy) where both were measured; distances of exactly zero have no place on the axis."""
    found = [(of(run.measured[m.step]), m.test) for m in run.moments if m.step in run.measured]
    return [(distance, test) for distance, test in found if distance > 0 and math.isfinite(test)]


def _told(points: Sequence[tuple[float, float]]) -> str:
    """Correlation of the logarithm of the distance with the accuracy, and of the ranks."""
    if len(points) < 3:
        return f"n = {len(points)}, too few to correlate"
    found = correlation([math.log(distance) for distance, _ in points], [test for _, test in points])
    pearson, spearman = ("undefined" if v is None else f"{v:+.2f}" for v in (found.pearson, found.spearman))
    return f"Pearson (log) {pearson}, Spearman {spearman}, n = {found.n}"


def _styles(found: Reproduction) -> dict[str, tuple[str, str, str]]:
    """Colour, line and marker of every method: the colour of its penalty, the line and the marker of its rule."""
    names = [method.name for method in found.request.methods]
    penalties = list(dict.fromkeys(name.partition("+")[0] for name in names))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(penalties)}
    return {name: (colours[name.partition("+")[0]], *STYLES[name.partition("+")[2]]) for name in names}
