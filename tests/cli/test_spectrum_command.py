"""`difc-ray spectrum`: a real run in a process of its own, and everything that can be asked wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from difc_ray.runs.checkpoint import run_lock
from difc_ray.studies.spectrum import measure
from tests.cli.shell import Cli, assert_sentences, difc_ray

CONFIG, CHECKPOINT = 2, 6
LITTLE = ("--examples", "12", "--lanczos", "4", "--top", "2", "--probes", "2")
PICTURES = ("density", "eigenvalues", "distances", "bound")


def journal_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def metrics_of(moment: dict[str, Any]) -> dict[str, float]:
    """What MLflow is to have of a checkpoint, from the file of the results."""
    found = {}
    for name, domain in moment["domains"].items():
        of_domain = {
            "top": max(each["value"] for each in domain["top"]), "lowest": domain["lowest"]["value"],
            "trace": domain["trace"], "loss": domain["loss"], "gradient_norm": domain["gradient_norm"],
        }  # fmt: skip
        found |= {f"spectrum/{kind}/{name}": value for kind, value in of_domain.items()}
    for pair in moment["pairs"]:
        bound, delta = pair["bound"], pair["bound"]["delta"]
        curvature = 0.5 * delta**2 * pair["hessian"]
        of_pair = {
            "hessian_distance": pair["hessian"], "gradient_distance": pair["gradient"], "gap": bound["gap"],
            "bound": delta * pair["gradient"] + curvature, "bound_curvature": curvature, "gap_even": bound["even_gap"],
        }  # fmt: skip
        found |= {f"spectrum/{kind}/{pair['one']}/{pair['other']}": value for kind, value in of_pair.items()}
    return found


def test_a_run_is_measured_drawn_and_recorded(trained: Path) -> None:
    run_dir, before = trained, journal_of(trained)
    store = {"MLFLOW_TRACKING_URI": before[0]["store"]}  # the run's folder is a copy, away from its database
    answer = difc_ray("spectrum", "runs/first", "--checkpoints", "2", *LITTLE, cwd=run_dir.parents[1], variables=store)
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
    assert added[-1]["time"] == before[-1]["time"]
    for record, moment in zip(added, found["moments"], strict=False):
        assert (record["step"], record["values"]) == (moment["step"], pytest.approx(metrics_of(moment)))


def test_the_same_options_give_the_same_bits_and_another_seed_others(cli: Cli, trained: Path) -> None:
    (trained / "metrics.jsonl").unlink()
    found = []
    for seed in ("1", "1", "2"):
        answer = cli("spectrum", str(trained), *LITTLE, "--domains", "mnist,mnistm", "--steps", "6", "--seed", seed)
        assert answer.code == 0, answer.err
        found.append((trained / "spectrum" / "spectrum.json").read_bytes())
    assert found[0] == found[1]
    first, other = (json.loads(text)["moments"][0]["domains"]["mnist"] for text in found[1:])
    assert first["loss"] != other["loss"]  # other examples
    assert first["nodes"] != other["nodes"]


def reconfigured(run_dir: Path, **changes: Any) -> None:
    """Changes keys of the configuration that lies in a run's folder."""
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_the_head_of_two_domains_elsewhere_without_mlflow(cli: Cli, trained: Path) -> None:
    (trained / "metrics.jsonl").unlink()
    reconfigured(trained, seed=7)
    answer = cli(
        "spectrum", str(trained), "--scope", "head", "--domains", "fonts,mnist", "--steps", "6", "--split", "val",
        "--precision", "float64", "--delta", "0.5", "--output", "there/below", "--top", "3", "--probes", "3",
        "--lanczos", "5", "--examples", "11",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads(Path("there/below/spectrum.json").read_text())
    assert (found["parameters"], found["target"]) == (2570, None)
    assert found["options"] == {
        "scope": "head", "domains": ["fonts", "mnist"], "steps": [6], "checkpoints": None, "split": "val",
        "precision": "float64", "delta": 0.5, "top": 3, "probes": 3, "lanczos": 5, "examples": 11, "seed": 7,
        "chunk": found["options"]["chunk"],
    }  # fmt: skip
    (moment,) = found["moments"]
    assert [len(domain["nodes"]) for domain in moment["domains"].values()] == [15, 15]  # of three starts
    (pair,) = moment["pairs"]
    assert (pair["one"], pair["other"], pair["bound"]["delta"]) == ("fonts", "mnist", 0.5)
    assert len(pair["sweep"]) == 7
    assert "over training" not in answer.out
    assert "the run has no journal" in answer.out


def test_the_target_is_last_and_the_newest_checkpoint_decides_the_radius(cli: Cli, trained: Path) -> None:
    (trained / "metrics.jsonl").unlink()
    answer = cli("spectrum", str(trained), *LITTLE, "--scope", "head", "--domains", "mnistm,mnist", "--steps", "6,3")
    assert answer.code == 0, answer.err
    found = json.loads((trained / "spectrum" / "spectrum.json").read_text())
    assert (found["target"], found["options"]["domains"]) == ("mnistm", ["mnist", "mnistm"])
    first, last = found["moments"]
    assert (first["step"], last["step"]) == (3, 6)
    for moment in (first, last):
        assert moment["pairs"][0]["bound"]["delta"] == pytest.approx(last["theta_norm"] / 1000, rel=1e-12)
    assert first["theta_norm"] != last["theta_norm"]
    assert [len(moment["pairs"][0]["sweep"]) for moment in (first, last)] == [0, 7]


def test_one_domain_has_no_pairs(cli: Cli, trained: Path) -> None:
    reconfigured(trained, tracking={"mode": "off"})
    before = journal_of(trained)
    answer = cli("spectrum", str(trained), *LITTLE, "--scope", "head", "--domains", "mnistm", "--steps", "6")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in (trained / "spectrum").glob("*.png")) == ["density.png", "eigenvalues.png"]
    assert "off; the figures are in" in answer.out
    assert journal_of(trained) == before


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


@pytest.mark.parametrize(
    ("output", "words"),
    [("config.yaml", "config.yaml`, which is a file"), ("config.yaml/below", "config.yaml`, which is a file"),
     ("x" * 300, "File name too long")],
    ids=["file", "below a file", "long"],
)  # fmt: skip
def test_an_output_that_cannot_be(output: str, words: str, cli: Cli, trained: Path) -> None:
    answer = cli("spectrum", str(trained), "--output", str(trained / output))
    assert answer.code == CONFIG
    assert_sentences(answer, ("`--output` must be a folder that can be written", words))


def test_what_does_not_get_to_mlflow_costs_a_note(cli: Cli, trained: Path) -> None:
    """Somebody trains in the folder; it cannot be written. The numbers and pictures are there all the same."""
    options = (*LITTLE, "--scope", "head", "--domains", "mnistm", "--steps", "6")
    with run_lock(trained):
        answer = cli("spectrum", str(trained), *options)
    assert answer.code == 0, answer.err
    assert "the figures are not in MLflow: one process at a time may train in a run folder" in answer.out
    assert "Free some space" not in answer.out
    shutil.rmtree(trained / "artifacts", ignore_errors=True)
    (trained / "artifacts").touch()
    answer = cli("spectrum", str(trained), *options, "--output", "elsewhere")
    assert answer.code == 0, answer.err
    assert "the figures are not in MLflow: [Errno" in answer.out
    assert "Free some space, or make the run's folder writable." in answer.out
    assert Path("elsewhere/spectrum.json").is_file()


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
    (trained / "metrics.jsonl").unlink()
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
