"""`difc-ray spectrum`: a real run in a process of its own, and everything that can be asked wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from difc_ray.spectrum import measure
from tests.cli.shell import Cli, assert_sentences, difc_ray

CONFIG, CHECKPOINT = 2, 6
LITTLE = ("--examples", "12", "--lanczos", "4", "--top", "2", "--probes", "2")
PICTURES = ("density", "eigenvalues", "distances", "bound")


def journal_of(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "tracking" / "journal.jsonl").read_text().splitlines()]


def test_a_run_is_measured_drawn_and_recorded(trained: Path) -> None:
    run_dir, before = trained, journal_of(trained)
    answer = difc_ray("spectrum", "runs/first", "--checkpoints", "2", *LITTLE, cwd=run_dir.parents[1])
    assert answer.code == 0, answer.err
    found = json.loads((run_dir / "spectrum" / "spectrum.json").read_text())
    assert [moment["step"] for moment in found["moments"]] == [3, 6]
    assert found["options"]["domains"] == ["mnist", "optdigits", "fonts", "mnistm"]
    last = found["moments"][-1]
    assert [f"{pair['one']} – {pair['other']}" for pair in last["pairs"]] == [
        "all sources – mnistm", "mnist – optdigits", "mnist – fonts", "mnist – mnistm", "optdigits – fonts",
        "optdigits – mnistm", "fonts – mnistm",
    ]  # fmt: skip
    assert len(last["pairs"][0]["sweep"]) == 7
    for domain in last["domains"].values():
        assert domain["examples"] == 12
        assert len(domain["top"]) == 2
        assert domain["top"][0]["value"] >= domain["top"][1]["value"] >= domain["lowest"]["value"]
        assert sum(domain["weights"]) == pytest.approx(1)
    for name in PICTURES:
        assert (run_dir / "spectrum" / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        assert f"{name}.png" in answer.out
    assert "all sources – mnistm, over training" in answer.out
    assert f"{last['domains']['fonts']['top'][0]['value']:.4g}" in answer.out
    assert "0 waiting, 0 refused" in answer.out
    added = journal_of(run_dir)[len(before) :]
    assert [record["kind"] for record in added] == ["metrics"] * 2 + ["artifact"] * 5 + ["finish"]
    assert added[-1]["ts"] == before[-1]["ts"]


def test_the_same_options_give_the_same_bits_and_another_seed_others(cli: Cli, trained: Path) -> None:
    shutil.rmtree(trained / "tracking")
    found = []
    for seed in ("1", "1", "2"):
        answer = cli("spectrum", str(trained), *LITTLE, "--domains", "mnist,mnistm", "--steps", "6", "--seed", seed)
        assert answer.code == 0, answer.err
        found.append((trained / "spectrum" / "spectrum.json").read_bytes())
    assert found[0] == found[1]
    first, other = (json.loads(text)["moments"][0]["domains"]["mnist"] for text in found[1:])
    assert first["loss"] != other["loss"]  # other examples
    assert first["nodes"] != other["nodes"]


def test_the_head_of_two_domains_elsewhere_without_mlflow(cli: Cli, trained: Path) -> None:
    shutil.rmtree(trained / "tracking")
    answer = cli(
        "spectrum", str(trained), *LITTLE, "--scope", "head", "--domains", "fonts,mnist", "--steps", "6", "--split",
        "val", "--precision", "float64", "--delta", "0.5", "--seed", "3", "--output", "there/below",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads(Path("there/below/spectrum.json").read_text())
    assert (found["parameters"], found["target"]) == (2570, None)
    (moment,) = found["moments"]
    (pair,) = moment["pairs"]
    assert (pair["one"], pair["other"], pair["bound"]["delta"]) == ("fonts", "mnist", 0.5)
    assert len(pair["sweep"]) == 7
    assert "the run has no journal" in answer.out


def test_one_domain_has_no_pairs(cli: Cli, trained: Path) -> None:
    shutil.rmtree(trained / "tracking")
    answer = cli("spectrum", str(trained), *LITTLE, "--scope", "head", "--domains", "mnistm", "--steps", "6")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in (trained / "spectrum").glob("*.png")) == ["density.png", "eigenvalues.png"]


WRONG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "domain": (("--domains", "mnsit,fonts"), ("`--domains`", "got `mnsit`", "Did you mean `mnist`?")),
    "domain twice": (("--domains", "mnist,mnist"), ("got `mnist,mnist`",)),
    "no domain": (("--domains", "mnist,"), ("got `mnist,`",)),
    "split": (("--split", "trian"), ("got `trian`", "Did you mean `train`?")),
    "scope": (("--scope", "body"), ("one of head, all, got `body`",)),
    "precision": (("--precision", "bf16"), ("one of float32, float64, got `bf16`",)),
    "step": (("--steps", "4,5"), ("got 5", "There are 3, 4, 6")),
    "step, a word": (("--steps", "last"), ("got `last`",)),
    "checkpoints": (("--checkpoints", "0"), ("`--checkpoints` must be an integer >= 1, got 0",)),
    "probes": (("--probes", "-1"), ("`--probes` must be an integer >= 1, got -1",)),
    "examples": (("--examples", "many"), ("`--examples` must be an integer >= 1, got many",)),
    "top": (("--lanczos", "3"), ("`--top` must be at most `--lanczos`", "got 5 of 3")),
    "delta": (("--delta", "-0.1"), ("`--delta` must be a number > 0, got `-0.1`",)),
    "delta, nan": (("--delta", "nan"), ("got `nan`",)),
    "seed": (("--seed", "x"), ("got `x`",)),
    "memory": (("--lanczos", "9000000"), ("must fit into memory", "got 9000000 + 10 vectors", "--scope head")),
    "option": (("--probe", "3"), ("unknown option, got `--probe`",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_one_sentence(case: str, cli: Cli, trained: Path) -> None:
    arguments, words = WRONG[case]
    answer = cli("spectrum", str(trained), *arguments)
    assert answer.code == CONFIG
    assert_sentences(answer, words)
    assert not (trained / "spectrum" / "spectrum.json").exists()


def test_an_output_that_is_a_file(cli: Cli, trained: Path) -> None:
    answer = cli("spectrum", str(trained), "--output", str(trained / "config.yaml"))
    assert answer.code == CONFIG
    assert_sentences(answer, ("`--output` must be a folder that can be written", "config.yaml"))


def test_no_run_and_no_checkpoint(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "nothing", ("which does not exist",)), (tmp_path, ("without config.yaml",))):
        answer = cli("spectrum", str(folder))
        assert answer.code == CHECKPOINT
        assert_sentences(answer, ("RUN_DIR must be a run folder", *words))
        assert not (folder / "spectrum").exists()
    shutil.rmtree(trained / "checkpoints")
    answer = cli("spectrum", str(trained))
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("a run must have a checkpoint, got none",))
    assert not (trained / "spectrum").exists()


def test_damaged_checkpoints_are_left_out_unless_they_were_asked_for(cli: Cli, trained: Path) -> None:
    shutil.rmtree(trained / "tracking")
    (trained / "checkpoints" / "step-00000004" / "weights.safetensors").write_bytes(b"")
    answer = cli("spectrum", str(trained), *LITTLE, "--scope", "head")
    assert answer.code == 0, answer.err
    assert "checkpoint step-00000004 is left out (`weights.safetensors` is empty)" in answer.out
    answer = cli("spectrum", str(trained), "--steps", "4")
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("`weights.safetensors` is empty",))
    for step in (3, 6):
        (trained / "checkpoints" / f"step-{step:08d}" / "state.json").unlink()
    answer = cli("spectrum", str(trained))
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("at least one checkpoint must be valid, got none", "step-00000003"))


def test_a_product_that_is_not_finite_names_the_checkpoint(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = measure.HeadRisk.product
    monkeypatch.setattr(measure.HeadRisk, "product", lambda risk, vector: honest(risk, vector) * float("inf"))
    answer = cli("spectrum", str(trained), *LITTLE, "--scope", "head", "--steps", "6")
    assert answer.code == 5
    assert_sentences(answer, ("must be finite", "checkpoint of step 6"))
