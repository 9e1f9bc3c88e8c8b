from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from difc_ray.runs import figures
from difc_ray.runs.figures import accuracy_bars, confusion_matrix, cosine_histogram, loss_curves


def render(figure: Figure, tmp_path: Path) -> np.ndarray:
    figure.savefig(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        return np.asarray(image.convert("RGB"))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, axes._left_title]]


def test_loss_curves_keep_the_data_and_smooth_without_inventing(tmp_path: Path) -> None:
    steps = list(range(1, 101))
    noisy = [1.0 + 0.1 * (-1) ** step for step in steps]
    noisy[49] = float("nan")
    figure = loss_curves(steps, {"mnist": noisy, "fonts": [2.0] * 100})
    (axes,) = figure.axes
    raw, smooth, _, constant = axes.lines
    np.testing.assert_array_equal(raw.get_ydata(), noisy)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mnist", "fonts"]
    np.testing.assert_allclose(constant.get_ydata(), 2.0)
    y = np.asarray(smooth.get_ydata())
    assert np.isnan(y[49])
    np.testing.assert_allclose(y[20], np.mean(noisy[18:23]))  # window 5
    np.testing.assert_allclose(y[0], np.mean(noisy[:3]))
    np.testing.assert_allclose(y[48], np.nanmean(noisy[46:51]))
    assert np.ptp(y[60:80]) < 0.5 * np.ptp(noisy[60:80])
    assert axes.get_yscale() == "linear"
    assert loss_curves([1, 2, 3], {"a": [3.0, 0.3, 0.03]}).axes[0].get_yscale() == "log"
    assert render(figure, tmp_path).std() > 1


def test_cosine_histogram_counts_each_pair_once_and_conflicts_left_of_zero() -> None:
    before = np.concatenate([np.linspace(-0.9, -0.01, 30), np.linspace(0.01, 0.9, 70), [np.nan]])
    after = np.maximum(before, -1e-12)  # orthogonal up to rounding
    figure = cosine_histogram(before, after)
    upper, lower = figure.axes
    for axes, conflicts, total in ((upper, 30, 100), (lower, 0, 100)):
        bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches if bar.get_x() > -1.5]
        assert sum(height for _, height in bars) == total
        assert sum(height for centre, height in bars if centre < 0) == conflicts
    assert "30.0% of 100" in texts(figure)[1]
    assert any("0.0% of 100 pairs" in text for text in texts(figure))


def test_confusion_matrix_shows_counts_by_true_row() -> None:
    confusion = np.array([[8, 2, 0], [1, 4, 5], [0, 0, 0]])
    figure = confusion_matrix(confusion, ["cat", "dog", "horse"], "sketch (test)")
    axes = figure.axes[0]
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares[:2], [[0.8, 0.2, 0], [0.1, 0.4, 0.5]])
    assert np.isnan(shares[2]).all()  # no examples: no share, not a share of 0
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (0, 1): "2", (1, 0): "1", (1, 1): "4", (1, 2): "5"}
    assert axes.get_title() == "sketch (test)\naccuracy 60.0%"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "horse"]


def test_accuracy_bars_have_one_bar_per_domain_and_split_and_mark_the_target() -> None:
    accuracies = {"mnistm": {"test": 0.65}, "mnist": {"val": 0.96, "train": 0.99}, "fonts": {"val": float("nan")}}
    figure = accuracy_bars(accuracies, target="mnistm")
    (axes,) = figure.axes
    bars = [bar for bar in axes.patches if np.isfinite(bar.get_height())]
    assert sorted(bar.get_height() for bar in bars) == [0.65, 0.96, 0.99]
    assert [bar.get_height() for bar in bars if bar.get_hatch()] == [0.65]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mnist", "fonts", "mnistm\n(target)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "val", "test"]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    assert all(right <= left for (_, right), (left, _) in pairwise(edges))


@pytest.mark.parametrize(
    "figure",
    [
        loss_curves([], {}),
        loss_curves([1], {"a": [float("nan")]}),
        cosine_histogram([], []),
        cosine_histogram([float("nan")], [1.0]),
        confusion_matrix(np.zeros((3, 3), dtype=np.int64), ["a", "b", "c"], "nothing"),
        confusion_matrix(np.ones((65, 65), dtype=np.int64), [f"class {i}" for i in range(65)], "many"),
        accuracy_bars({}),
        accuracy_bars({"a": {}}, target="a"),
        accuracy_bars({f"a_long_domain_name_{i}": {"val": 0.5} for i in range(12)}),
    ],
)
def test_extreme_input_is_drawn_without_warnings(figure: Figure, tmp_path: Path) -> None:
    pixels = render(figure, tmp_path)
    assert pixels.shape[0] > 300


def test_contact_sheet_puts_pictures_in_rows_and_columns_and_leaves_empty_cells_white() -> None:
    def picture(value: int, channels: int = 3) -> np.ndarray:
        return np.full((24, 24, channels), value, dtype=np.uint8)

    cells = {"a": [[picture(10), picture(20)], [picture(30)]], "b": [[], [picture(40, 1), picture(50)]]}
    figure = figures.contact_sheet(cells, ["cat", "dog"], "both")
    (axes,) = figure.axes
    sheet = np.asarray(axes.images[0].get_array())
    step_y, step_x = 24 + 2, 2 * 24 + 4
    found = {(r, c): sheet[r * step_y, c * step_x + n * 24, 0] for r in (0, 1) for c in (0, 1) for n in (0,)}
    assert found == {(0, 0): 10, (0, 1): 30, (1, 0): 255, (1, 1): 40}
    assert sheet[0, 24, 0] == 20
    assert sheet[0, step_x + 24, 0] == 255
    assert sheet[step_y, step_x + 24].tolist() == [50, 50, 50]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


CONFUSIONS = np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]], [[1, 3, 0], [2, 2, 0], [0, 0, 0]]])
"""Two evaluations of three classes, the last of them without examples."""


def test_recall_over_time_is_the_diagonal_over_the_row_and_nan_without_examples() -> None:
    figure = figures.recall_over_time([50, 100], CONFUSIONS, ["a", "b", "c"])
    shown = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert shown[:2].tolist() == [[0.75, 0.25], [1.0, 0.5]]
    assert np.isnan(shown[2]).all()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["50", "100"]


def test_confusion_over_time_shows_the_first_and_the_last_of_many() -> None:
    many = np.repeat(CONFUSIONS[:1], 9, axis=0)
    many[-1] = CONFUSIONS[1]
    figure = figures.confusion_over_time(list(range(0, 90, 10)), many, ["a", "b", "c"])
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "step 0: 87.5%",
        "step 30: 87.5%",
        "step 50: 87.5%",
        "step 80: 37.5%",
    ]
    assert np.asarray(panels[-1].images[0].get_array())[0].tolist() == [0.25, 0.75, 0.0]


@pytest.mark.process
def test_matplotlib_is_imported_to_draw_and_pyplot_never() -> None:
    script = """
import sys
import difc_ray.runs.train
assert "matplotlib" not in sys.modules
from difc_ray.runs.figures import loss_curves
loss_curves([], {})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
