"""Published collections on the command line: what there is, what is missing, and runs on small files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import FAST, Cli, assert_sentences, table_rows
from tests.published import needs_fashion, part, write_idx

RUN = ("train", "engine=inline", "tracking.mode=off", "batch_size=16", "name=clothes", *FAST)
CLOTHES = ("dataset=fashion", "sources=plain,photo,rotated", "target=sketch")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("FashionMNIST", "MNIST"):
        write_idx(tmp_path / "data" / name / "raw", part(60, seed=0), part(12, seed=1))
    return tmp_path / "data"


def test_a_run_on_clothes_and_its_table(root: Path, cli: Cli, tmp_path: Path) -> None:
    answer = cli(*RUN, *CLOTHES, f"root={root}", "dataset_options.imbalance=0.5")
    assert answer.code == 0, answer.err
    assert set(table_rows(answer.out)) >= {"plain", "photo", "rotated", "sketch"}
    summary = json.loads((tmp_path / "runs" / "clothes" / "summary.json").read_text())
    assert summary["accuracy"]["sketch"].keys() == {"all"}


def test_data_check_shows_the_tail_of_sources_and_none_of_the_target(root: Path, cli: Cli) -> None:
    answer = cli("data", "check", *CLOTHES, f"root={root}")
    assert answer.code == 0, answer.err
    lines = {line.split("│")[1].strip(): line for line in answer.out.splitlines() if line.startswith("│")}
    assert "18 each" in lines["sketch"]
    assert "t-shirt: 18, trouser: " in lines["plain"]
    assert "all 720 examples can be used" in answer.out


def test_domains_marks_what_is_missing(root: Path, cli: Cli) -> None:
    asked = ("dataset=torchvision_digits", f"root={root}", "sources=mnist,rotated_15", "target=mnistm")
    answer = cli("domains", *asked)
    assert (answer.code, answer.err) == (0, "")
    ours = answer.out[answer.out.index("torchvision_digits  MNIST") :]
    lines = {line.split("│")[1].strip(): line for line in ours.splitlines() if line.startswith("│")}
    assert [name for name, line in lines.items() if "files missing" in line] == ["usps", "svhn"]
    assert "72 each" in lines["mnistm"]
    told = [line for line in ours.splitlines() if line.startswith("the files of")]
    assert len(told) == 2
    assert f"no `usps.bz2`, `usps.t.bz2` in `{root}` (dataset `torchvision_digits`)." in told[0]
    assert_sentences(cli(*RUN, *asked[:2], "sources=mnist,usps", "target=mnistm"), ("`usps.bz2`", "domain `usps`"))


def test_nothing_at_all_is_an_error(tmp_path: Path, cli: Cli) -> None:
    for dataset, domains in (("torchvision_digits", "sources=mnist,usps"), ("fashion", "sources=plain,photo")):
        answer = cli("domains", f"dataset={dataset}", f"root={tmp_path}", domains, "target=")
        assert answer.code == 3
        assert_sentences(answer, ("ubyte", "dataset_options.download=true"))


@needs_fashion()
@pytest.mark.slow
def test_the_readmes_command_on_a_few_real_articles(cli: Cli) -> None:
    answer = cli(*RUN[:3], *CLOTHES, "dataset_options.limit=600", "steps=60", "eval_every=60", "model=lenet")
    assert answer.code == 0, answer.err
    rows = table_rows(answer.out)
    assert float(rows["plain"][2].rstrip("%")) > 30  # chance is 10
