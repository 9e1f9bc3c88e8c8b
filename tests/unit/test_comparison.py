"""Comparisons of records: who stands for a method, what is refused, what is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from matplotlib import colormaps

from difc_ray.cli.compare import methods_table
from difc_ray.comparison import text as wording
from difc_ray.comparison.comparison import Comparison, analyse
from difc_ray.comparison.figures import drawings
from difc_ray.comparison.page import page
from difc_ray.comparison.records import RunRecord
from difc_ray.comparison.writing import as_json
from difc_ray.errors import ConfigError


def record(
    method: str = "gh + hutchinson",
    point: int | None = 1,
    seed: int = 0,
    validation: float | None = 0.9,
    target_accuracy: float | None = 0.6,
    **changes: Any,
) -> RunRecord:
    """A run; validation None: it did not get to its end."""
    sources = changes.pop("sources", ("m", "f"))
    values: dict[str, Any] = {
        "run_id": f"{method}/{point}/{seed}/{changes.get('fold')}/{changes.get('target')}/{changes.get('name')}",
        "name": f"{method}-{point}-{seed}",
        "state": "finished",
        "sweep": None if point is None else "s",
        "point": None if point is None else str(point),
        "target": "t",
        "dataset": "digits",
        "fingerprint": "abc",
        "sources": sources,
        "params": {"harmonize.lam": "0.5", "steps": "100"},
        "searched": {},
        "curve": {50: 0.5, 100: 0.8},
        "validation_by_source": {} if validation is None else {d: validation - 0.01 * i for i, d in enumerate(sources)},
        "target_accuracy": None if validation is None else target_accuracy,
    }
    return RunRecord(method=method, seed=seed, **(values | changes))


def seeds(method: str, point: int, figures: Sequence[tuple[float, float]], **changes: Any) -> list[RunRecord]:
    return [record(method, point, seed, *pair, **changes) for seed, pair in enumerate(figures)]


MEAN = seeds("mean + erm", 0, [(0.90, 0.50), (0.91, 0.60), (0.92, 0.55), (0.90, 0.52), (0.92, 0.58)])
GOOD = seeds("gh + hutchinson", 1, [(0.93, 0.53), (0.94, 0.63), (0.95, 0.58), (0.93, 0.55), (0.95, 0.61)])
LUCKY = seeds("gh + hutchinson", 2, [(0.80, 0.99), (0.81, 0.99), (0.80, 0.99), (0.80, 0.99), (0.80, 0.99)])


def refusal(records: Sequence[RunRecord], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        analyse(records, **options)
    assert ", got " in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def rows(comparison: Comparison) -> dict[str, Any]:
    return {method.name: method for method in comparison.methods}


def test_the_setting_that_stands_for_a_method_is_not_chosen_by_its_target() -> None:
    comparison = analyse([*LUCKY, *MEAN, *GOOD])
    method = rows(comparison)["gh + hutchinson"]
    assert (method.setting.label, method.among) == ("#1", 2)
    assert method.target.mean == pytest.approx(0.58)
    oracle = analyse([*LUCKY, *MEAN, *GOOD], selection="oracle")
    assert rows(oracle)["gh + hutchinson"].setting.label == "#2"
    assert any("oracle" in note for note in oracle.notes)


def test_the_difference_is_paired_by_seed_whatever_the_seeds_do() -> None:
    comparison = analyse([*MEAN, *reversed(GOOD)])
    found = rows(comparison)["gh + hutchinson"].difference
    assert found.n == 5
    assert (found.mean, found.low, found.high) == pytest.approx((0.03, 0.03, 0.03))
    assert wording.difference(found) == "+3.0 [+3.0, +3.0], 5 pairs"
    assert rows(comparison)["mean + erm"].difference is None
    assert [wording.rank(method) for method in comparison.methods] == ["1", "2"]
    told = " ".join(wording.verdict(comparison))
    assert "is ahead of `mean + erm`" in told
    assert not any("fewer than" in note for note in comparison.notes)


def test_a_single_method_has_no_rank() -> None:
    for records, ranked in (([*MEAN, *GOOD], True), (MEAN, False)):
        comparison = analyse(records)
        assert (">rank</th>" in page(comparison, [], {})) is ranked
        assert ("a place is lost" in page(comparison, [], {})) is ranked
        table = methods_table(comparison)
        assert (table.columns[0].header == "rank") is ranked
        names = next(list(column.cells) for column in table.columns if column.header == "method")
        assert names == [method.name for method in comparison.methods]  # no cell has moved to another column


@pytest.mark.parametrize(("n", "told"), [(1, "+3.0, 1 pair: too few"), (2, "+3.0, 2 pairs: too few"), (4, "4 pairs")])
def test_few_pairs_are_no_verdict_no_rank_and_no_colour(n: int, told: str) -> None:
    """The lead is clear and the same in all pairs, and still nothing is said of it."""
    comparison = analyse([*MEAN[:n], *GOOD[:n], *seeds("ghpp + hutchinson", 5, [(0.6, 0.1)] * n)])
    assert told in wording.difference(rows(comparison)["gh + hutchinson"].difference)
    assert {wording.rank(method) for method in comparison.methods} == {"1="}
    assert any("fewer than 5 pairs" in note and "by chance" in note for note in comparison.notes)
    verdict = " ".join(wording.verdict(comparison))
    assert "too few pairs" in verdict
    assert "is ahead" not in verdict
    assert "1 ahead" not in verdict
    assert 'class="ahead"' not in page(comparison, [], {})
    assert 'class="behind"' not in page(comparison, [], {})
    (figure,) = (drawing.figure for drawing in drawings(comparison) if drawing.name == "differences")
    assert figure is not None
    assert {line.get_color() for line in figure.axes[0].lines} == {"#9a9a9a", "#333333"}  # grey, and the line at zero


def test_the_worst_source_is_found_run_by_run() -> None:
    runs = [
        record(seed=0, validation_by_source={"m": 0.9, "f": 0.7}),
        record(seed=1, validation_by_source={"m": 0.6, "f": 0.8}),
    ]
    (method,) = analyse(runs).methods
    assert method.worst.mean == pytest.approx(0.65)
    assert set(method.worst_domains) == {"m", "f"}


def test_baselines_match_rules_and_methods_and_typos_are_answered() -> None:
    aligned_mean = seeds("mean + hutchinson", 3, [(0.9, 0.5)])
    everything = [*MEAN, *GOOD, *aligned_mean]
    assert analyse(everything).baseline == "mean + erm"
    assert analyse(everything, baseline="mean + hutchinson").baseline == "mean + hutchinson"
    assert analyse(everything, baseline="gh").baseline == "gh + hutchinson"
    alone = analyse(GOOD)
    assert alone.baseline is None
    assert any("There is no baseline `mean`" in note for note in alone.notes)
    assert "Did you mean `mean + erm`" in refusal(everything, baseline="mean + erms")
    two = [*seeds("gh + gradient", 4, [(0.9, 0.5)]), *GOOD]
    assert "must be one method" in refusal(two, baseline="gh")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "u"}, ("same target", "`t`", "`u`", "--target NAME")),
        ({"dataset": "faces"}, ("same dataset", "faces", "digits")),
        ({"fingerprint": "def"}, ("same data", "`abc (m, f)`", "`def (m, f)`")),
    ],
)
def test_runs_of_different_kinds_are_not_compared(changes: Mapping[str, Any], words: Sequence[str]) -> None:
    told = refusal([*MEAN, *seeds("gh + hutchinson", 1, [(0.9, 0.5)], **changes)])
    assert all(word in told for word in words), told


def test_one_target_of_several_can_be_asked_for() -> None:
    both = [*MEAN, *GOOD, *seeds("gh + hutchinson", 7, [(0.99, 0.99)], target="u", fingerprint="def")]
    comparison = analyse(both, target="t")
    assert comparison.target == "t"
    assert "1 run with another target is left out (`u` 1)." in comparison.notes
    assert {setting.label for setting in comparison.settings} == {"#0", "#1"}
    assert "Known: t, u" in refusal(both, target="x")


def test_held_out_sources_serve_selection_and_nothing_else() -> None:
    folds = [
        record("gh + hutchinson", point, 0, 0.9, accuracy, fold=fold, target=fold, sources=others, fingerprint="other")
        for point, accuracy in ((1, 0.3), (2, 0.8))
        for fold, others in (("m", ("f",)), ("f", ("m",)))
    ]
    comparison = analyse([*MEAN, *GOOD, *LUCKY, *folds], selection="leave_one_domain_out")
    assert rows(comparison)["gh + hutchinson"].setting.label == "#2"
    assert rows(comparison)["mean + erm"].setting.label == "#0"  # one setting needs no choice
    assert len(comparison.runs) == 15
    leaking = [dataclasses.replace(fold, sources=(*fold.sources, "t")) for fold in folds]
    choices = {choice.rule: choice for choice in analyse([*GOOD, *LUCKY, *leaking]).choices}
    assert choices["leave_one_domain_out"].point is None
    assert "held a source domain out" in refusal([*GOOD, *LUCKY], selection="leave_one_domain_out")


def test_every_setting_is_listed_with_how_it_ended() -> None:
    others = [
        record(point=5, validation=None, state="stopped", why="asha"),
        record(point=6, validation=None, state="failed", why="NumericError: no number", curve={}),
        record(point=7, validation=None, state="running", curve={}),
        record(point=8, seed=0),
        record(point=8, seed=1, validation=None, state="failed", why="lost"),
        record("unknown rule + unknown objective", 9, validation=None, state="failed", dataset="", fingerprint="",
               sources=(), target=None, curve={}),
    ]  # fmt: skip
    comparison = analyse([*MEAN, *GOOD, *others])
    status = {setting.label: setting.status for setting in comparison.settings}
    assert status["#0"] == "finished"
    assert status["#5"] == "stopped at step 100 (asha)"
    assert status["#6"] == "failed: NumericError: no number"
    assert status["#7"] == "running, before the first evaluation"
    assert status["#8"] == "seed 0 finished; seed 1 failed: lost"
    assert status["#9"] == "failed: no cause was recorded"
    assert any("1 run is still going on" in note for note in comparison.notes)
    assert any("between 1 and 5 seeds" in note for note in comparison.notes)


def test_seeds_that_the_scheduler_stopped_count_with_what_they_reached() -> None:
    stopped = record("gh + hutchinson", 9, 1, 0.70, 0.30, state="stopped", why="asha at step 50")
    lucky = [record("gh + hutchinson", 9, 0, 0.96, 0.70), stopped]
    comparison = analyse([*lucky, *GOOD, *MEAN])
    method = rows(comparison)["gh + hutchinson"]
    assert (method.setting.label, method.among) == ("#1", 2)  # 0.96 alone would have won
    alone = rows(analyse([*lucky, *MEAN]))["gh + hutchinson"]
    assert alone.target.mean == pytest.approx(0.5)
    assert alone.setting.status == "seed 0 finished; seed 1 stopped: asha at step 50"
    assert any("1 run that the scheduler stopped counts" in note for note in comparison.notes)
    assert [setting.label for setting in comparison.settings] == ["#0", "#1", "#9"]


def test_nothing_finished_is_refused_with_the_causes() -> None:
    told = refusal([record(validation=None, state="failed", why="NumericError: no number")])
    assert "at least one run must have finished" in told
    assert "no number" in told


def test_runs_outside_of_sweeps_are_one_setting_when_only_seed_and_place_differ() -> None:
    runs = [
        record(point=None, seed=seed, name=f"run{seed}-{lam}",
               params={"harmonize.lam": lam, "steps": "100", "seed": str(seed), "output": f"o{seed}", "cluster.x": lam})
        for lam in ("0.2", "0.8") for seed in (0, 1)
    ]  # fmt: skip
    comparison = analyse(runs)
    assert [(setting.label, len(setting.runs)) for setting in comparison.settings] == [("run0-0.2", 2), ("run0-0.8", 2)]
    assert [dict(setting.values) for setting in comparison.settings] == [
        {"harmonize.lam": "0.2"}, {"harmonize.lam": "0.8"},
    ]  # fmt: skip


def test_a_repeated_run_counts_once_and_a_longer_training_is_told() -> None:
    again = dataclasses.replace(GOOD[0], run_id="again", target_accuracy=0.7)
    longer = [dataclasses.replace(run, params={**run.params, "steps": "900"}) for run in MEAN]
    comparison = analyse([*longer, *GOOD, again])
    assert rows(comparison)["gh + hutchinson"].validation.n == 5
    assert rows(comparison)["gh + hutchinson"].target.mean == pytest.approx((0.7 + 0.63 + 0.58 + 0.55 + 0.61) / 5)
    assert any("`steps`" in note for note in comparison.notes)
    assert any("1 repeated run" in note for note in comparison.notes)


def test_without_a_target_validation_ranks() -> None:
    bare = [dataclasses.replace(run, target=None, target_accuracy=None) for run in [*MEAN, *GOOD]]
    comparison = analyse(bare)
    assert comparison.ranked_by == "validation"
    assert rows(comparison)["gh + hutchinson"].difference.mean == pytest.approx(0.03)
    assert "in validation" in " ".join(wording.verdict(comparison))


def test_figures_without_data_are_left_out_with_a_sentence_and_others_have_them() -> None:
    bare = {drawing.name: drawing for drawing in drawings(analyse(GOOD))}
    assert {name for name, drawing in bare.items() if drawing.figure is not None} == {"learning_curves"}
    assert all(drawing.caption.startswith("No ") for drawing in bare.values() if drawing.figure is None)
    swept = [
        record(point=point, seed=seed, target_accuracy=0.5 + 0.01 * point, hessian=0.1 * point,
               searched={"harmonize.lam": 0.1 * point, "alignment.alpha": 10.0**-point, "alignment.beta": 0})
        for point in (1, 2, 3) for seed in (0, 1)
    ]  # fmt: skip
    full = {drawing.name: drawing for drawing in drawings(analyse([*MEAN, *swept]))}
    assert all(drawing.figure is not None for drawing in full.values())
    assert "n = 6" in full["hessian"].caption
    assert "Pearson +1.00" in full["hessian"].caption
    labels = [label.get_text() for label in full["parallel_coordinates"].figure.axes[0].get_xticklabels()]
    assert labels == ["λ", "α (log)", "validation"]  # β is constant


def test_names_are_no_formulas_and_no_markup() -> None:
    odd = r"a$\frac{1$<i>"
    runs = [dataclasses.replace(run, target=odd, hessian=0.1 * (run.seed + 1), method=f"{odd} + erm") for run in GOOD]
    runs += [dataclasses.replace(run, target=odd) for run in MEAN]
    comparison = analyse(runs, title=odd)
    drawn = drawings(comparison)
    for drawing in drawn:
        if drawing.figure is not None:
            drawing.figure.draw_without_rendering()
    assert {drawing.name for drawing in drawn if drawing.figure is not None} >= {"differences", "hessian"}
    html = page(comparison, drawn, {})
    assert "<i>" not in html
    assert html.count("&lt;i&gt;") > 5


def test_the_numbers_are_strict_json() -> None:
    comparison = analyse([*MEAN, *GOOD, record(point=5, validation=None, state="failed", hessian=float("nan"))])
    text = json.dumps(as_json(comparison), allow_nan=False)
    read = json.loads(text)
    assert read["methods"][0]["difference"]["mean"] == pytest.approx(0.03)
    assert read["settings"][-1]["runs"][0]["hessian"] is None


def test_settings_of_one_method_are_compared_with_one_of_them() -> None:
    """λ of three values, five seeds each; the second one stands for the method."""
    method = "ghpp + hutchinson"
    figures = {0: [(0.90, 0.50)] * 5, 1: [(0.94, 0.53)] * 5, 2: [(0.92, 0.49)] * 5}
    runs = [run for point, values in figures.items()
            for run in seeds(method, point, values, searched={"harmonize.lam": 0.25 * point})]  # fmt: skip
    comparison = analyse(runs, baseline="#0")
    assert (comparison.baseline, comparison.between_settings) == ("#0", True)
    found = comparison.differences
    assert {label: round(100 * (each.mean or 0), 6) for label, each in found.items()} == {"#1": 3.0, "#2": -1.0}
    verdict = wording.verdict(comparison)
    assert verdict[0].startswith("Selection by `train_domain_val` picks `#1 (ghpp + hutchinson)` with λ 0.25")
    assert "It is ahead of `#0` on t: +3.0 points" in verdict[1]
    assert "1 ahead (#1), 0 that cannot be told apart, 1 behind (#2)" in verdict[2]
    html = page(comparison, [], {})
    assert html.count('<td class="ahead">') == 2  # the method, and its setting
    assert html.count('<td class="behind">') == 1
    assert "difference to #0, points" in html
    (figure,) = (drawing.figure for drawing in drawings(comparison) if drawing.name == "differences")
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["#1", "#2"]
    assert analyse(runs, baseline="#1").methods[0].difference is None
    assert "a setting that is the baseline must have a run that counts, got `#7`" in refusal(runs, baseline="#7")


def test_every_line_of_parallel_coordinates_has_the_colour_of_its_value() -> None:
    """Also those that were stopped early: the scale is that of all lines; what has no value is grey."""
    figures = [(0, 0.9, "finished"), (1, 0.95, "finished"), (2, 0.92, "finished"), (3, 0.3, "stopped")]
    runs = [
        record("ghpp + hutchinson", point, 0, None if state == "stopped" else value, state=state, curve={10: value},
               searched={"harmonize.lam": 0.1 * point, "alignment.alpha": 0.5 + point})
        for point, value, state in figures
    ]  # fmt: skip
    runs.append(record("ghpp + hutchinson", 4, 0, None, state="failed", curve={},
                       searched={"harmonize.lam": 0.9, "alignment.alpha": 9.0}))  # fmt: skip
    (drawing,) = (one for one in drawings(analyse(runs)) if one.name == "parallel_coordinates")
    assert drawing.figure is not None
    lines = [line for line in drawing.figure.axes[0].lines if line.get_linewidth() == 1.8]
    grey = [line for line in lines if line.get_color() == "#9a9a9a"]
    assert (len(lines), len(grey)) == (5, 1)
    assert len(grey[0].get_xdata()) == 2  # it never reached the axis of the validation accuracy
    coloured = {len(line.get_xdata()): [] for line in lines if line not in grey}
    assert set(coloured) == {3}
    heights = sorted((float(line.get_ydata()[-1]), line.get_color()) for line in lines if line not in grey)
    values = sorted(value - 0.005 * (state == "finished") for _, value, state in figures)
    span = values[-1] - values[0]
    for (height, colour), value in zip(heights, values, strict=True):
        assert height == pytest.approx((value - values[0]) / span)
        assert colour == pytest.approx(colormaps["viridis"]((value - values[0]) / span), abs=0.01)
    assert "Grey: it ended before its first evaluation" in drawing.caption
