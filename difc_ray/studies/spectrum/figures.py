"""Pictures of a measurement: pure functions from its records to matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from difc_ray.plotting import COLOURS, GREY, INK, colour_of, legend_below, new_figure, short, tidy, whole_numbers
from difc_ray.studies.spectrum.records import ALL_SOURCES, CheckpointSpectrum, PairDistance, Spectrum
from difc_ray.studies.spectrum.transfer import TransferBound

WIDTH: Final = 0.004
"""Standard deviation of the curve that stands for a Ritz value, as a share of the range of all eigenvalues."""

FLOOR: Final = 0.1
"""Lowest density that is drawn, as a share of the height of a single eigenvalue."""


def pictures(spectrum: Spectrum) -> dict[str, Figure]:
    """All figures by name; what needs two domains is left out where there is one."""
    found = {"density": densities(spectrum), "eigenvalues": eigenvalues(spectrum)}
    if spectrum.moments[0].pairs:
        found |= {"distances": distances(spectrum), "bound": bounds(spectrum)}
    return found


def densities(spectrum: Spectrum) -> Figure:
    """Density of the eigenvalues, a panel per domain: filled at the last checkpoint, a grey line at the first.

    The axis is logarithmic: nearly all eigenvalues lie at zero, and the few others are what matters. Each Ritz value is
    drawn as a narrow normal curve; ticks below the axis mark the largest eigenvalues.
    """
    first, last = spectrum.moments[0], spectrum.moments[-1]
    shown = [last] if first is last else [first, last]
    names = list(last.domains)
    figure = new_figure(7.2, 1.0 + 1.55 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    ends = [value for moment in shown for each in moment.domains.values() for value in (each.nodes[0], each.nodes[-1])]
    low, high = min(0.0, *ends), max(0.0, *ends)
    span = (high - low) or 1.0
    grid_G = np.linspace(low - 0.03 * span, high + 0.03 * span, 1600)
    peak = 0.0
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        tidy(axes)
        colour = colour_of(index)
        density_G = _smooth(last, name, grid_G, WIDTH * span)
        peak = max(peak, float(density_G.max()))
        axes.fill_between(grid_G, density_G, 1e-300, color=colour, alpha=0.3, linewidth=0)
        axes.plot(grid_G, density_G, color=colour, linewidth=1.2, label=f"step {last.step}")
        if first is not last:
            earlier_G = _smooth(first, name, grid_G, WIDTH * span)
            peak = max(peak, float(earlier_G.max()))
            axes.plot(grid_G, earlier_G, color=GREY, linewidth=1.0, label=f"step {first.step}")
        top = [each.value for each in last.domains[name].top]
        axes.plot(top, [0.03] * len(top), "|", color=INK, markersize=6, transform=axes.get_xaxis_transform())
        role = " (target)" if name == spectrum.target else ""
        axes.set_title(f"{short(name)}{role}", fontsize=9, loc="left")
        axes.legend(loc="upper right", frameon=False, fontsize=8)
    panels[0].set_yscale("log")
    single = 1 / (spectrum.parameters * WIDTH * span * np.sqrt(2 * np.pi))
    panels[0].set_ylim(FLOOR * single, 2 * peak)
    panels[-1].set_xlabel("eigenvalue of the Hessian (marks: the largest)")
    figure.supylabel("density", fontsize=10)
    return figure


def eigenvalues(spectrum: Spectrum) -> Figure:
    """Largest and smallest eigenvalue, and the trace with its standard error, against the step; a line per domain."""
    figure, left, right, steps = _over_training(spectrum)
    for index, name in enumerate(spectrum.moments[-1].domains):
        style: dict[str, Any] = {"color": colour_of(index), "marker": "o", "markersize": 4}
        found = [moment.domains[name] for moment in spectrum.moments]
        left.plot(steps, [each.top[0].value for each in found], label=short(name), **style)
        left.plot(steps, [each.lowest.value for each in found], linestyle="--", linewidth=1.0, **style)
        errors = [each.trace_error or 0.0 for each in found]
        right.errorbar(steps, [each.trace for each in found], errors, capsize=3, **style)
    left.set_title("Largest (solid) and smallest (dashed) eigenvalue", fontsize=10)
    right.set_title("Trace, with its standard error", fontsize=10)
    for axes in (left, right):
        axes.axhline(0.0, color=INK, linewidth=0.8)
    legend_below(figure)
    return figure


def distances(spectrum: Spectrum) -> Figure:
    """``‖H_a − H_b‖₂`` and ``‖g_a − g_b‖`` against the step; a line per pair, those with the target solid."""
    figure, left, right, steps = _over_training(spectrum)
    for index, pair in enumerate(spectrum.moments[-1].pairs):
        pairs = [moment.pairs[index] for moment in spectrum.moments]
        solid = spectrum.target is None or pair.other == spectrum.target
        style: dict[str, Any] = {
            "color": "#222222" if pair.one == ALL_SOURCES else colour_of(index),
            "linestyle": "-" if solid else "--", "marker": "o", "markersize": 4,
            "linewidth": 2.2 if pair.one == ALL_SOURCES else 1.4,
        }  # fmt: skip
        left.plot(steps, [each.hessian for each in pairs], label=_ends(pair), **style)
        right.plot(steps, [each.gradient for each in pairs], **style)
    left.set_title("‖H_a − H_b‖₂, distance of the Hessians", fontsize=10)
    right.set_title("‖g_a − g_b‖, distance of the gradients", fontsize=10)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    legend_below(figure)
    return figure


def bounds(spectrum: Spectrum) -> Figure:
    """The transfer bound beside the measured gap: at every checkpoint, and at other radii at the last one.

    Where the gap crosses the bound, what is beyond second order has outgrown it: the radius is too large for the
    theorem to say anything. Across the kinks of a ReLU there is some of that at every radius.
    """
    main = spectrum.moments[-1].main
    figure = new_figure(10.2, 4.3)
    left, right = figure.subplots(1, 2)
    steps = [moment.step for moment in spectrum.moments]
    bounds = [moment.main.bound for moment in spectrum.moments]
    _bound_lines(left, [float(step) for step in steps], bounds)
    left.set(xlabel="step", title=f"At δ = {main.bound.delta:.3g}, over training")
    _steps(left, steps)
    _bound_lines(right, [each.delta for each in main.sweep], main.sweep)
    right.axvline(main.bound.delta, color=INK, linewidth=0.8, linestyle=":")
    right.set(xlabel="radius δ", xscale="log", title=f"At step {steps[-1]}, over the radius")
    for axes in (left, right):
        tidy(axes)
        axes.set_yscale("log")
        axes.title.set_fontsize(10)
    left.set_ylabel("difference of the rises in loss")
    figure.suptitle(f"Transfer bound and measured gap, {_ends(main)}", fontsize=11)
    legend_below(figure)
    return figure


def _over_training(spectrum: Spectrum) -> tuple[Figure, Axes, Axes, list[int]]:
    """Two axes over the steps of the checkpoints, and these."""
    figure = new_figure(10.2, 3.9)
    left, right = figure.subplots(1, 2)
    steps = [moment.step for moment in spectrum.moments]
    for axes in (left, right):
        tidy(axes)
        _steps(axes, steps)
        axes.set_xlabel("step")
    return figure, left, right, steps


def _bound_lines(axes: Axes, places: Sequence[float], bounds: Sequence[TransferBound]) -> None:
    """Bounds as lines, what was measured as points; zero has no place on the axis."""
    lines = (
        ("bound: δ‖Δg‖ + ½δ²‖ΔH‖₂", "bound", "-", COLOURS[0], ""),
        ("measured gap", "gap", "none", COLOURS[1], "o"),
        ("½δ²‖ΔH‖₂ alone", "curvature_term", "--", COLOURS[0], ""),
        ("measured, even part", "even_gap", "none", COLOURS[1], "x"),
    )
    for label, field, dash, colour, marker in lines:
        values = np.array([float(getattr(bound, field)) for bound in bounds])
        axes.plot(places, np.where(values > 0, values, np.nan), color=colour, linestyle=dash, marker=marker or None,
                  markersize=6, linewidth=1.6, label=label)  # fmt: skip


def _smooth(moment: CheckpointSpectrum, name: str, grid_G: np.ndarray, width: float) -> np.ndarray:
    return moment.domains[name].density().smooth(grid_G, width)


def _steps(axes: Axes, steps: Sequence[int]) -> None:
    """Few whole numbers; a single checkpoint in the middle."""
    whole_numbers(axes.xaxis)
    if len(set(steps)) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
        axes.set_xticks([steps[0]])


def _ends(pair: PairDistance) -> str:
    return f"{short(pair.one)} – {short(pair.other)}"
