"""Figures of a comparison: pure functions from its records to matplotlib figures, or to the sentence why there is none.

They are narrow with large type, so that they can be read on a phone as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from difc_ray.comparison.comparison import MIN_CORRELATED, Comparison
from difc_ray.comparison.records import RunRecord
from difc_ray.comparison.settings import ALPHA, BETA, LAM
from difc_ray.comparison.statistics import FEW_PAIRS
from difc_ray.config import SYMBOLS
from difc_ray.plotting import (
    COLOURS,
    GREY,
    INK,
    canvas,
    colour_of,
    legend_below,
    line_of,
    marker_of,
    new_figure,
    percent,
    short,
    tidy,
    whole_numbers,
)

LOG_SPAN: Final = 20.0
"""Axes are logarithmic where the largest value is more than so many times the smallest positive one."""
_WIDTH, _HEIGHT, _DPI = 5.8, 4.0, 160


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, or why there is none.

    Args:
        name: name of its file, without ending.
        title: what it shows.
        caption: how it is read, in a sentence or two; instead of a figure, why there is none.
        figure: the figure; None if the runs have not what it needs.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None


def drawings(comparison: Comparison) -> list[Drawing]:
    """All figures of a comparison, in the order of the page."""
    return [
        differences(comparison),
        learning_curves(comparison),
        lam_sensitivity(comparison),
        parallel_coordinates(comparison),
        hessian_scatter(comparison),
    ]


def differences(comparison: Comparison) -> Drawing:
    """Paired difference of each method to the baseline, with its interval."""
    name, title = "differences", "Difference to the baseline"
    rows = [(name, difference) for name, difference in comparison.compared if difference.mean is not None]
    if not rows:
        why = "without a baseline there is none." if comparison.baseline is None else "no pair of runs has one seed."
        return Drawing(name=name, title=title, caption=f"No difference to show: {why}", figure=None)
    figure = new_figure(_WIDTH, 1.25 + 0.42 * len(rows), _DPI)
    axes = tidy(figure.subplots())
    for place, (_, difference) in enumerate(rows):
        mean, low, high = (100 * (value or 0.0) for value in (difference.mean, difference.low, difference.high))
        colour = GREY if difference.tied else COLOURS[0] if difference.above else COLOURS[1]
        if difference.low is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot(mean, place, "o", color=colour, markersize=8, markeredgecolor="white")
        axes.annotate(
            f"{mean:+.1f}", (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=9, color=INK
        )
    axes.axvline(0.0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(rows)), [_name(method) for method, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)
    where = f"on {_name(comparison.target)}" if comparison.ranked_by == "target" else "on the sources' validation"
    axes.set_xlabel(f"points of accuracy {where}")
    caption = (
        f"Mean paired difference to `{comparison.baseline}` and its 95 % interval; grey: the interval includes zero, "
        f"or there are fewer than {FEW_PAIRS} pairs, which have none."
    )
    return Drawing(name=name, title=title, caption=caption, figure=figure)


def learning_curves(comparison: Comparison) -> Drawing:
    """Validation accuracy against the step: mean and standard error per method, faint lines for all other runs."""
    name, title = "learning_curves", "Learning curves"
    if not any(run.curve for run in comparison.runs):
        return Drawing(name=name, title=title, caption="No learning curves: no run was evaluated.", figure=None)
    figure, axes = canvas(_WIDTH, _HEIGHT, _DPI)
    standing = {run.run_id for method in comparison.methods for run in method.setting.complete}
    others = [run for run in comparison.runs if run.run_id not in standing and run.curve]
    for run in others:
        axes.plot(list(run.curve), list(run.curve.values()), color=GREY, linewidth=0.8, alpha=0.45)
        if run.state == "stopped":
            axes.plot(*list(run.curve.items())[-1], "x", color=GREY, markersize=5, alpha=0.8)
    for index, method in enumerate(comparison.methods):
        steps, mean, error = _band(_curves(method.setting.complete))
        style: dict[str, Any] = {"color": colour_of(index), "linestyle": line_of(index)}
        axes.plot(steps, mean, linewidth=2.0, label=_name(method.name), marker="o", markersize=3, **style)
        axes.fill_between(steps, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="validation accuracy")
    percent(axes.yaxis)
    whole_numbers(axes.xaxis)
    legend_below(figure)
    caption = "Mean over the sources' validation splits, and over seeds at the setting of each method; the band is one "
    caption += "standard error."
    if others:
        caption += " Grey: the runs of all other settings; a cross where the scheduler stopped one."
    return Drawing(name=name, title=title, caption=caption, figure=figure)


def lam_sensitivity(comparison: Comparison) -> Drawing:
    """Accuracy against λ, per method that was run with several.

    Source: Huang et al. 2024, Gradient Harmonization in Unsupervised Domain Adaptation, Figure 14.
    Differs from the source: λ may have been drawn together with α and β; every run is a point.
    """
    name, title = "lambda", "Sensitivity to λ"
    by_method: dict[str, list[tuple[float, RunRecord]]] = {}
    for setting in comparison.settings:
        for run in setting.complete:
            if run.state == "finished" and (lam := run.number(LAM)) is not None:
                by_method.setdefault(setting.method, []).append((lam, run))
    varied = {method: runs for method, runs in by_method.items() if len({lam for lam, _ in runs}) > 1}
    if not varied:
        return Drawing(
            name=name, title=title, caption="No sensitivity to λ: `harmonize.lam` was not varied.", figure=None
        )
    panels: list[tuple[str, Any]] = [("validation", lambda run: run.validation)]
    if comparison.target is not None:
        panels.insert(0, (comparison.target, lambda run: run.target_accuracy))
    figure = new_figure(_WIDTH, 1.0 + 2.1 * len(panels), _DPI)
    alone = not {ALPHA, BETA} & {key for setting in comparison.settings for key in setting.values}
    order = [method.name for method in comparison.methods]
    for axes, (label, accuracy) in zip(
        figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        tidy(axes)
        for method, runs in varied.items():
            index = order.index(method) if method in order else len(order)
            points = [(lam, accuracy(run)) for lam, run in runs if accuracy(run) is not None]
            axes.plot(*zip(*points, strict=True), marker_of(index), color=colour_of(index), alpha=0.8,
                      markersize=6, markeredgecolor="white", label=_name(method))  # fmt: skip
            if alone:
                lams = sorted({lam for lam, _ in points})
                means = [float(np.mean([y for x, y in points if x == lam])) for lam in lams]
                axes.plot(lams, means, color=colour_of(index), linewidth=1.6)
        axes.set_ylabel(f"accuracy, {_name(label)}")
        percent(axes.yaxis)
    axes.set_xlabel("λ (harmonize.lam)")
    legend_below(figure)
    caption = "Every finished run is a point"
    caption += (
        ", the line joins the means at each λ." if alone else "; α or β varied too: this is not λ's effect alone."
    )
    return Drawing(name=name, title=title, caption=caption, figure=figure)


def parallel_coordinates(comparison: Comparison) -> Drawing:
    """A line per run through λ, α and β, coloured by validation accuracy."""
    name, title = "parallel_coordinates", "λ, α and β together"
    found = [(run, _reached(run)) for run in comparison.runs]
    keys = [key for key in SYMBOLS if len({run.number(key) for run, _ in found} - {None}) > 1]
    drawn = [(run, score) for run, score in found if all(run.number(key) is not None for key in keys)]
    scores = np.array([score for _, score in drawn if math.isfinite(score)])
    if len(keys) < 2 or len(scores) < 2:
        return Drawing(
            name=name,
            title=title,
            caption="No parallel coordinates: no two of λ, α and β were varied together.",
            figure=None,
        )
    figure, axes = canvas(_WIDTH, _HEIGHT, _DPI)
    columns = [
        _Axis.of(SYMBOLS[key], np.array([run.number(key) for run, _ in drawn], dtype=np.float64), share=key == LAM)
        for key in keys
    ]
    columns.append(_Axis.of("validation", scores, share=True, percent=True))
    norm, colours = Normalize(float(scores.min()), float(scores.max())), colormaps["viridis"]
    reached = iter(columns[-1].height)
    lines = []
    for row, (run, score) in enumerate(drawn):
        heights = [column.height[row] for column in columns[:-1]]
        known = math.isfinite(score)
        lines.append((score if known else -math.inf, run, [*heights, next(reached)] if known else heights))
    for score, run, heights in sorted(lines, key=lambda line: line[0]):  # the best ones lie on top
        style = "-" if run.state == "finished" else (0, (3, 2))
        colour = colours(norm(score)) if math.isfinite(score) else GREY
        axes.plot(range(len(heights)), heights, color=colour, linestyle=style, linewidth=1.8, alpha=0.85)
    for place, column in enumerate(columns):
        axes.axvline(place, color=INK, linewidth=1.0)
        for height, label in column.ticks:
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            axes.annotate(
                label, (place, height), (5, 0), textcoords="offset points", va="center", fontsize=8.5, bbox=box
            )
    axes.set_xticks(range(len(columns)), [column.label for column in columns], fontsize=11)
    axes.set(xlim=(-0.1, len(columns) - 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    caption = "A line per run, yellow for high validation accuracy; dashed: the run did not finish, and the best value "
    caption += "it reached counts."
    if len(scores) < len(drawn):
        caption += " Grey: it ended before its first evaluation."
    return Drawing(name=name, title=title, caption=caption, figure=figure)


def hessian_scatter(comparison: Comparison) -> Drawing:
    """Distance between the sources' Hessians at the end of training against accuracy on the target.

    Source: Hemati et al. 2023, Understanding Hessian Alignment for Domain Generalization: the closer the Hessians, the
    better the transfer.
    Differs from the source: the distance is the training penalty's own, over the last tenth of the steps.
    """
    name, title = "hessian", "Hessian distance and transfer"
    found = comparison.hessian
    if found is None:
        caption = (
            f"No scatter of Hessian distance against target accuracy: it needs {MIN_CORRELATED} finished runs that "
            "measured the distance and have a target; runs without a Hessian penalty do not measure it."
        )
        return Drawing(name=name, title=title, caption=caption, figure=None)
    figure, axes = canvas(_WIDTH, _HEIGHT, _DPI)
    methods = list(dict.fromkeys([m.name for m in comparison.methods] + [s.method for s in comparison.settings]))
    everything: list[float] = []
    for index, method in enumerate(methods):
        runs = [run for setting in comparison.settings if setting.method == method for run in setting.complete]
        points = [(run.hessian, run.target_accuracy) for run in runs if None not in (run.hessian, run.target_accuracy)]
        if points:
            everything += [float(x or 0.0) for x, _ in points]
            style: dict[str, Any] = {
                "color": colour_of(index),
                "markeredgecolor": "white",
                "markersize": 8,
                "alpha": 0.9,
            }
            axes.plot(*zip(*points, strict=True), marker_of(index), label=_name(method), linestyle="none", **style)
    if min(everything) > 0 and max(everything) > LOG_SPAN * min(everything):
        axes.set_xscale("log")
    coefficients = ", ".join(
        f"{kind} {value:+.2f}" if value is not None else f"{kind} undefined (constant)"
        for kind, value in (("Pearson", found.pearson), ("Spearman", found.spearman))
    )
    axes.set(xlabel="distance between the sources' Hessians", ylabel=f"accuracy on {_name(comparison.target)}")
    axes.set_title(f"{coefficients}, n = {found.n}", fontsize=10, loc="left")
    percent(axes.yaxis)
    legend_below(figure)
    caption = "A point per finished run; the distance is the mean over the last tenth of its steps. "
    caption += f"{coefficients}, n = {found.n}. "
    caption += "Runs of one sweep share what was not varied: a correlation here is no proof of a cause."
    return Drawing(name=name, title=title, caption=caption, figure=figure)


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis of parallel coordinates: heights in [0, 1] and labelled ticks."""

    label: str
    height: np.ndarray
    ticks: list[tuple[float, str]]

    @classmethod
    def of(cls, label: str, values_N: np.ndarray, *, share: bool = False, percent: bool = False) -> _Axis:
        """Logarithmic where values span more than :data:`LOG_SPAN` and are no shares; zero lies below the rest."""
        positive = values_N[values_N > 0]
        log = not share and values_N.min() >= 0 and positive.size > 0 and positive.max() > LOG_SPAN * positive.min()
        scaled = values_N
        if log:
            floor = math.log10(positive.min()) - 0.15 * math.log10(positive.max() / positive.min())
            scaled = np.where(values_N > 0, np.log10(np.where(values_N > 0, values_N, 1.0)), floor)
        low, span = float(scaled.min()), float(np.ptp(scaled)) or 1.0
        height = (scaled - low) / span
        if log:
            decades = range(math.ceil(math.log10(positive.min())), math.floor(math.log10(positive.max())) + 1)
            marks = {float(decade): f"{10.0**decade:g}" for decade in decades}
            marks = marks if len(marks) > 1 else {math.log10(x): f"{x:.2g}" for x in (positive.min(), positive.max())}
            marks |= {low: "0"} if (values_N == 0).any() else {}
        else:
            round_values = MaxNLocator(4).tick_values(low, low + span)
            inside = [float(x) for x in round_values if low - 1e-9 * span <= x <= low + (1 + 1e-9) * span]
            marks = {x: f"{100 * x:.3g}%" if percent else f"{x:.3g}" for x in inside}
        return cls(label=f"{label} (log)" if log else label, height=height,
                   ticks=[((mark - low) / span, text) for mark, text in marks.items()])  # fmt: skip


def _reached(run: RunRecord) -> float:
    """Validation accuracy at the end, or the best on the way; NaN before the first evaluation."""
    score = run.validation if run.complete else run.best_seen
    return math.nan if score is None else score


def _curves(runs: Sequence[RunRecord]) -> list[Mapping[int, float]]:
    """Those of runs that were trained to the end, if there are any; a stopped one would cut all of them short."""
    whole = [run.curve for run in runs if run.curve and run.state == "finished"]
    return whole or [run.curve for run in runs if run.curve]


def _band(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Steps at which all runs were evaluated, mean and standard error there (zero for one run)."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    table = np.array([[curve[step] for step in steps] for curve in curves]).reshape(len(curves), len(steps))
    mean = table.mean(axis=0) if curves else np.zeros(0)
    error = table.std(axis=0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else np.zeros(len(steps))
    return steps, mean, error


def _name(name: str | None) -> str:
    return short(name or "", 34)
