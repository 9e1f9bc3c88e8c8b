"""Figures of a run: pure functions from arrays to matplotlib figures. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from difc_ray.plotting import (
    COLOURS,
    INK,
    canvas,
    colour_of,
    legend_beside,
    line_of,
    new_figure,
    short,
    tidy,
    whole_numbers,
)
from difc_ray.runs.metrics_log import MetricsLog
from difc_ray.step.evaluation import SplitMetrics, accuracies

_BEFORE, _AFTER, _CONFLICT = COLOURS[1], COLOURS[0], COLOURS[1]
_SPLITS = ("train", "val", "test")
_MAX_CLASSES_WITH_NUMBERS = 20
_ROUNDING = 1e-9
"""A harmonized pair that is orthogonal up to rounding is no conflict."""


def run_figures(
    log: MetricsLog, metrics: Sequence[SplitMetrics], class_names: Sequence[str], target: str | None
) -> dict[str, Figure]:
    """All figures of a run by name; what it has no numbers for is left out.

    Args:
        log: what was measured on the way.
        metrics: of the selected checkpoint.
        class_names: the classes, in the order of the metrics.
        target: the target domain, if there is one.
    """
    found: dict[str, Figure] = {}
    steps, losses, before, after = log.curves()
    if steps:
        found["loss_curves"] = loss_curves(steps, losses)
    if before:
        found["row_cosines"] = cosine_histogram(before, after)
    compared, conflicts = log.conflicts()
    if compared:
        found["conflicts"] = conflict_curves(compared, conflicts)
    evaluated, matrices = log.confusions()
    if len(evaluated) > 1:
        found["recall_over_time"] = recall_over_time(evaluated, np.array(matrices), class_names)
        found["confusion_over_time"] = confusion_over_time(evaluated, np.array(matrices), class_names)
    found["accuracy"] = accuracy_bars(accuracies(metrics), target=target)
    for m in [m for m in metrics if m.domain == target] or [m for m in metrics if m.split == "test"]:
        found[f"confusion_{m.domain}"] = confusion_figure(m, class_names)
    return found


def confusion_figure(metrics: SplitMetrics, class_names: Sequence[str]) -> Figure:
    """The confusion matrix of one split."""
    title = f"{metrics.domain} ({metrics.split}, n = {metrics.n})"
    return confusion_matrix(np.array(metrics.confusion), class_names, title)


def loss_curves(steps: Sequence[int], losses: Mapping[str, Sequence[float]]) -> Figure:
    """Loss of each domain against the step: faint as measured, bold as a centred running mean.

    Args:
        steps: n steps, increasing.
        losses: per domain n losses, >= 0; one that is not finite leaves a gap.
    """
    figure, axes = canvas(7.2, 4.2)
    x = np.asarray(steps)
    for index, (domain, values) in enumerate(losses.items()):
        y = np.where(np.isfinite(values), np.asarray(values, dtype=np.float64), np.nan)
        _plot_smoothed(axes, x, y, index, label=domain)
    finite = np.concatenate([np.asarray(values, dtype=np.float64) for values in losses.values()] or [np.zeros(0)])
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if finite.size and finite.max() > 30 * finite.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="step", ylabel="classification loss", title="Loss per source domain")
    whole_numbers(axes.xaxis)
    legend_beside(figure)
    return figure


def conflict_curves(steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> Figure:
    """Conflict metrics over training, a panel each: faint as measured, bold as a centred running mean.

    Args:
        steps: n steps, increasing.
        series: per metric n values; one that is not finite leaves a gap.
    """
    figure = new_figure(7.2, 1.1 + 1.5 * max(1, len(series)))
    panels = np.atleast_1d(np.asarray(figure.subplots(max(1, len(series)), 1, sharex=True)))
    x = np.asarray(steps)
    for index, (axes, (name, values)) in enumerate(zip(panels, series.items(), strict=False)):
        tidy(axes)
        y = np.where(np.isfinite(values), np.asarray(values, dtype=np.float64), np.nan)
        _plot_smoothed(axes, x, y, index)
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.set_title(name, fontsize=9, loc="left")
    panels[-1].set_xlabel("step")
    whole_numbers(panels[-1].xaxis)
    figure.suptitle("Conflict between rows", fontsize=11)
    return figure


def cosine_histogram(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> Figure:
    """Cosines between pairs of rows before and after harmonization; what is left of zero is a conflict.

    Args:
        before: cosines in [-1, 1], one per pair and step; not finite ones (a zero row) are left out.
        after: the same for the harmonized rows.

    Source: Huang et al. 2024, Gradient Harmonization in Unsupervised Domain Adaptation, Figures 2 and 12.
    Differs from the source: cosines instead of inner products, so that steps of different gradient length compare.
    """
    panels = (("before harmonization", before, _BEFORE), ("after harmonization", after, _AFTER))
    figure = new_figure(7.2, 4.6)
    pair = figure.subplots(2, 1, sharex=True)
    cosines = [np.clip(_finite(values), -1.0, 1.0) for _, values, _ in panels]
    cosines = [np.where(np.abs(values) < _ROUNDING, 0.0, values) for values in cosines]
    bins = _bins(np.concatenate(cosines))
    for axes, values, (label, _, colour) in zip(pair, cosines, panels, strict=True):
        tidy(axes)
        counts, _, _ = axes.hist(values, bins=bins, color=colour, alpha=0.85, edgecolor="white", linewidth=0.4)
        axes.set_ylim(0, max(1.0, 1.1 * float(np.max(counts))))
        share = float(np.mean(values < 0)) if values.size else 0.0
        axes.axvspan(-2.0, 0.0, color=_CONFLICT, alpha=0.07, linewidth=0, zorder=0)
        axes.axvline(0.0, color=INK, linewidth=1.0)
        axes.set_title(f"{label}: {share:.1%} of {values.size:,} pairs in conflict", fontsize=10, loc="left")
        axes.set_ylabel("pairs")
        whole_numbers(axes.yaxis, 5)
    pair[0].set_xlim(bins[0], bins[-1])
    pair[1].set_xlabel("cosine between two rows (shaded: conflict)")
    return figure


def confusion_matrix(confusion: Int[np.ndarray, "N N"], class_names: Sequence[str], title: str) -> Figure:
    """Counts of true against predicted classes, coloured by the share of the true class.

    Args:
        confusion: (n_classes, n_classes) counts >= 0; rows are true classes, columns predictions.
        class_names: n_classes names.
        title: what was evaluated.
    """
    n, class_names = len(class_names), [short(name) for name in class_names]
    counts = np.asarray(confusion)
    shares = _shares(counts)
    side = min(14.0, 3.2 + 0.42 * n)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    _share_bar(figure, _draw_shares(axes, shares), [axes], "share of the true class", fraction=0.046)
    long_names = max((len(name) for name in class_names), default=0) > 3
    size = max(3.0, min(9.0, 460.0 / n))
    axes.set_xticks(range(n), class_names, fontsize=size, rotation=90 if long_names else 0)
    axes.set_yticks(range(n), class_names, fontsize=size)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{title}\naccuracy {accuracy:.1%}")
    if n <= _MAX_CLASSES_WITH_NUMBERS:
        _write_counts(axes, counts, shares)
    return figure


def recall_over_time(
    steps: Sequence[int], confusions_TKK: Int[np.ndarray, "T K K"], class_names: Sequence[str]
) -> Figure:
    """Recall of each class at each evaluation, one row per class; grey where a class has no examples.

    Args:
        steps: (T,) updates taken.
        confusions_TKK: counts; rows are true classes, columns predictions.
        class_names: K names.
    """
    recall_TK = np.stack([np.diag(_shares(counts)) for counts in confusions_TKK])
    n, class_names = len(class_names), [short(name) for name in class_names]
    figure = new_figure(7.2, min(14.0, 1.6 + 0.3 * n))
    axes = figure.subplots()
    image = _draw_shares(axes, recall_TK.T, cmap="viridis", aspect="auto")
    _share_bar(figure, image, [axes], "recall", fraction=0.046)
    shown = _spread(len(steps), 8)
    axes.set_xticks(shown, [str(steps[i]) for i in shown])
    axes.set_yticks(range(n), class_names, fontsize=max(4.0, min(9.0, 300.0 / n)))
    axes.set(xlabel="step", title="Recall of each class on the sources' validation splits")
    return figure


def confusion_over_time(
    steps: Sequence[int], confusions_TKK: Int[np.ndarray, "T K K"], class_names: Sequence[str]
) -> Figure:
    """Confusion matrices of up to four evaluations, the first and the last among them, as shares of the true class.

    Args:
        steps: (T,) updates taken.
        confusions_TKK: counts; rows are true classes, columns predictions.
        class_names: K names.
    """
    shown = _spread(len(steps), 4)
    figure = new_figure(3.0 * len(shown) + 1.2, 3.6)
    panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    size, class_names = max(3.0, min(7.0, 160.0 / len(class_names))), [short(name) for name in class_names]
    for axes, at in zip(panels, shown, strict=True):
        counts = confusions_TKK[at]
        image = _draw_shares(axes, _shares(counts))
        axes.set(xlabel="predicted", title=f"step {steps[at]}: {np.trace(counts) / max(counts.sum(), 1):.1%}")
        axes.set_xticks(range(len(class_names)), class_names, fontsize=size, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names, fontsize=size)
    panels[0].set_ylabel("true")
    _share_bar(figure, image, list(panels), "share of the true class", fraction=0.02)
    return figure


def contact_sheet(
    pictures: Mapping[str, Sequence[Sequence[UInt8[np.ndarray, "H W _"]]]], class_names: Sequence[str], title: str
) -> Figure:
    """Pictures by domain (rows) and class (columns); a cell may hold several, side by side, or none.

    Args:
        pictures: domain -> for each class the pictures of the cell, bytes, all of one size.
        class_names: of the columns.
        title: what is shown.
    """
    cells = [cell for row in pictures.values() for cell in row]
    height, width = next(picture.shape[:2] for cell in cells for picture in cell)
    per_cell = max(len(cell) for cell in cells)
    gap = max(2, width // 12)
    step_y, step_x = height + gap, per_cell * width + 2 * gap
    sheet = np.full((step_y * len(pictures), step_x * len(class_names), 3), 255, dtype=np.uint8)
    for row, of_domain in enumerate(pictures.values()):
        for column, cell in enumerate(of_domain):
            for number, picture in enumerate(cell):
                top, left = row * step_y, column * step_x + number * width
                sheet[top : top + height, left : left + width] = picture
    scale = 1.1 / height  # inches per pixel: every picture about an inch high
    size = (1.4 + scale * sheet.shape[1], 1.1 + scale * sheet.shape[0])
    figure = new_figure(*size)
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    middle = (per_cell * width - 1) / 2
    columns, rows = np.arange(len(class_names)), np.arange(len(pictures))
    axes.set_xticks(columns * step_x + middle, [short(name) for name in class_names])
    axes.set_yticks(rows * step_y + (height - 1) / 2, [short(name) for name in pictures])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)
    return figure


def accuracy_bars(shares: Mapping[str, Mapping[str, float]], target: str | None = None) -> Figure:
    """Accuracy per domain and split; the target, which did not train, stands apart.

    Args:
        shares: domain -> split -> accuracy in [0, 1]; not every domain has every split, and nan draws no bar.
        target: name of the target domain, None if there is none.
    """
    domains = [domain for domain in shares if domain != target] + [d for d in shares if d == target]
    found = {split for splits in shares.values() for split in splits}
    splits = [split for split in _SPLITS if split in found] + sorted(found.difference(_SPLITS))
    figure, axes = canvas(min(16.0, max(5.4, 2.2 + 1.25 * len(domains))), 4.2)
    position = 0.0
    centres: list[float] = []
    for domain in domains:
        shown = [split for split in splits if np.isfinite(shares[domain].get(split, np.nan))]
        position += 0.35 if domain == target and centres else 0.0
        width = 0.8 / max(len(splits), 2)
        for index, split in enumerate(shown):
            x = position + (index - (len(shown) - 1) / 2) * width
            value = shares[domain][split]
            bar = axes.bar(x, value, 0.92 * width, color=colour_of(splits.index(split)), zorder=2)
            if domain == target:
                bar[0].set(hatch="///", edgecolor="white", linewidth=0)
            axes.annotate(f"{100 * value:.1f}", (x, value), (0, 2), textcoords="offset points", ha="center", fontsize=7)
        centres.append(position)
        position += 1.0
    names = [f"{domain}\n(target)" if domain == target else domain for domain in domains]
    crowded = max((len(name) for domain in domains for name in domain.split()), default=0) > 11
    axes.set_xticks(centres, names, rotation=25 if crowded else 0, ha="right" if crowded else "center")
    axes.set(xlim=(-0.6, position - 0.4), ylim=(0, 1.08), ylabel="accuracy", title="Accuracy per domain")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", visible=False)
    for index, split in enumerate(splits):
        axes.bar(np.nan, np.nan, color=colour_of(index), label=split)
    legend_beside(figure, "split")
    return figure


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def _bins(cosines: np.ndarray) -> np.ndarray:
    """Edges of 0.05, or finer when all cosines lie close together; zero is always an edge."""
    low, high = (float(cosines.min()), float(cosines.max())) if cosines.size else (-1.0, 1.0)
    width = next(width for width in (0.01, 0.02, 0.05) if (high - low) / width <= 60 or width == 0.05)
    first = min(np.floor(low / width), -2.0)
    last = max(np.ceil(high / width), 2.0)
    return np.arange(first, last + 1) * width


def _plot_smoothed(axes: Axes, x: np.ndarray, y: np.ndarray, index: int, label: str | None = None) -> None:
    """Faint as measured, bold as a centred running mean."""
    axes.plot(x, y, color=colour_of(index), alpha=0.25, linewidth=0.8)
    smooth = _running_mean(y, max(1, len(y) // 25))
    axes.plot(x, smooth, color=colour_of(index), linestyle=line_of(index), linewidth=1.8, label=label)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window, shorter at the ends; nan are left out."""
    known = np.isfinite(values)
    kernel = np.ones(2 * (window // 2) + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")[: len(values)]
    count = np.convolve(known.astype(np.float64), kernel, "same")[: len(values)]
    return np.where(known, total / np.maximum(count, 1.0), np.nan)


def _draw_shares(
    axes: Axes, shares: np.ndarray, cmap: str = "Blues", aspect: Literal["equal", "auto"] = "equal"
) -> Any:
    """Shares from 0 to 1 as colours, without a frame; grey where there is none."""
    axes.set_facecolor("0.85")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes.imshow(shares, cmap=cmap, vmin=0.0, vmax=1.0, aspect=aspect, interpolation="nearest")


def _share_bar(figure: Figure, image: Any, axes: Sequence[Axes], label: str, fraction: float) -> None:
    """The key to the colours beside some panels; it takes that fraction of their width."""
    bar = figure.colorbar(image, ax=list(axes), fraction=fraction, pad=0.02, format=PercentFormatter(1.0))
    bar.set_label(label)
    bar.outline.set_visible(False)


def _spread(count: int, most: int) -> np.ndarray:
    """Up to so many of the positions 0 to count - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _shares(counts: np.ndarray) -> np.ndarray:
    """Shares of the true class; NaN for a class without examples."""
    totals = counts.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    return shares


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else INK
            axes.text(column, row, f"{count:d}", ha="center", va="center", fontsize=7, color=colour)
