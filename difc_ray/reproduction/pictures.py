"""Pictures: accuracy against step, and what the distances between training domains tell of the test domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from difc_ray.reports.statistics import correlation
from difc_ray.reproduction.distances import Distance
from difc_ray.reproduction.running import Moment, Reproduction, Run
from difc_ray.reproduction.table import title_of

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5", "#ff8ab7", "#9498a0")
MARKERS = ("o", "s", "^")
CEILING = 0.75


def accuracy_curves(found: Reproduction) -> Figure:
    """Accuracy on the training domains, the test domain and without colour over training; a line per method."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels: Sequence[tuple[str, Callable[[Moment], float]]] = (
        ("training domains", lambda moment: moment.train),
        ("test domain", lambda moment: moment.test),
        ("without colour", lambda moment: moment.gray),
    )
    every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (name, of) in zip(every, panels, strict=True):
        for index, method in enumerate(found.request.methods):
            runs = found.of(method.name)
            if not runs:
                continue
            steps = [moment.step for moment in runs[0].moments]
            values = np.array([[of(moment) for moment in run.moments] for run in runs])
            mean, spread = values.mean(0), values.std(0)
            colour, dash = _style(index)
            axes.plot(steps, mean, color=colour, linestyle=dash, label=method.name)
            axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(CEILING, color="#888888", linewidth=0.8, linestyle=":")
        anneal = 190
        if anneal < found.base.steps:
            axes.axvline(anneal, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="updates")
        _tidy(axes)
    every[0].set_ylabel("accuracy")
    every[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(f"{title_of(found)}: mean over restarts, band of one standard deviation", fontsize=11)
    _legend(figure, every[0])
    return figure


def distance_scatter(found: Reproduction) -> Figure:
    """Distance between the training domains' gradients and Hessians at the head against accuracy on the test domain.

    Large points are the ends of runs, small ones states on the way there; the coefficients are of either.

    Source: Hemati et al. 2023, whose poster has the correlation over training for its two methods.
    Differs from the source: the distance is the spectral norm of the difference of the whole Hessians of the head, the
    same for every method.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels: Sequence[tuple[str, Callable[[Distance], float]]] = (
        ("Hessian distance ‖H_a − H_b‖₂", lambda distance: distance.hessian),
        ("gradient distance ‖g_a − g_b‖₂", lambda distance: distance.gradient),
    )
    every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axes, (name, of) in zip(every, panels, strict=True):
        ends: list[tuple[float, float]] = []
        way: list[tuple[float, float]] = []
        for index, method in enumerate(found.request.methods):
            points = [_points(run, of) for run in found.of(method.name)]
            last = [each[-1] for each in points if each]
            before = [pair for each in points for pair in each[:-1]]
            ends, way = ends + last, way + before + last
            colour, _ = _style(index)
            marker = MARKERS[(index // len(COLOURS)) % len(MARKERS)]
            if before:
                axes.plot(*zip(*before, strict=True), marker, color=colour, markersize=3, alpha=0.35, linestyle="none")
            if last:
                axes.plot(*zip(*last, strict=True), marker, color=colour, markersize=8, markeredgecolor="white",
                          linestyle="none", label=method.name)  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlabel=name)
        axes.set_title(f"ends: {_told(ends)}\nall: {_told(way)}", fontsize=9, loc="left")
        _tidy(axes)
    every[0].set_ylabel("accuracy on the test domain")
    every[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(f"{title_of(found)}: distance between the training domains, and transfer", fontsize=11)
    _legend(figure, every[0])
    return figure


def _points(run: Run, of: Callable[[Distance], float]) -> list[tuple[float, float]]:
    """(distance, test accuracy) where both were measured; distances of exactly zero have no place on the axis."""
    found = [(of(run.distances[m.step]), m.test) for m in run.moments if m.step in run.distances]
    return [(distance, test) for distance, test in found if distance > 0 and math.isfinite(test)]


def _told(points: Sequence[tuple[float, float]]) -> str:
    """Correlation of the logarithm of the distance with the accuracy, and of the ranks."""
    if len(points) < 3:
        return f"n = {len(points)}, too few to correlate"
    found = correlation([math.log(distance) for distance, _ in points], [test for _, test in points])
    pearson, spearman = ("undefined" if v is None else f"{v:+.2f}" for v in (found.pearson, found.spearman))
    return f"Pearson (log) {pearson}, Spearman {spearman}, n = {found.n}"


def _style(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], ("-", "--", ":")[(index // len(COLOURS)) % 3]


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
