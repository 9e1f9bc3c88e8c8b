"""Domains that are looked at on the way, and that decide nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from difc_ray.config import load_config
from difc_ray.errors import ConfigError
from difc_ray.tracking import entries
from tests.runs import small_config, train


@pytest.mark.parametrize("selection", ["train_domain_val", "oracle"])
def test_observed_domains_are_evaluated_and_choose_nothing(selection: str, tmp_path: Path) -> None:
    config = small_config(
        output=str(tmp_path), engine="inline", sources=["mnist", "optdigits"], target="fonts", selection=selection,
        observe=["mnistm", "fonts"], eval_every=2,
    )  # fmt: skip
    result = train(config)
    seen = list(entries(result.run_dir / "metrics.jsonl", "evaluation"))
    assert [line["step"] for line in seen] == [2, 4, 5]
    for line in seen:
        assert {"all/accuracy/mnistm", "all/accuracy/fonts", "val/accuracy/mnist"} <= line.keys()
        held = [line["val/accuracy/mnist"], line["val/accuracy/optdigits"]]
        expected = line["all/accuracy/fonts"] if selection == "oracle" else sum(held) / 2
        assert line["selection/score"] == pytest.approx(expected)
    ended = {(metric.domain, metric.split) for metric in result.metrics}
    assert {("fonts", "all"), ("mnistm", "all")} <= ended
    assert len(result.metrics) == len(ended)


def test_an_observed_domain_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"`observe` must name domains of dataset `digits`.*Did you mean `fonts`"):
        load_config(None, ["observe=font"])
