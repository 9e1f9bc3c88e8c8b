"""The Colored MNIST table: our steps against the published scripts' algorithm, and what the table says."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.datasets import MNIST

from difc_ray.cli.reproduce import run_reproduction
from difc_ray.config import Config
from difc_ray.errors import CheckpointError, ConfigError, DataError
from difc_ray.runs.setup import prepare
from difc_ray.step.factory import load_domain, model_of
from difc_ray.studies.colored_mnist import running
from difc_ray.studies.colored_mnist.checkpoints import Measured, between, measured, on_all_examples
from difc_ray.studies.colored_mnist.methods import DEFAULT, LAMBDA, METHODS, methods_of
from difc_ray.studies.colored_mnist.pictures import accuracy_curves, distance_scatter
from difc_ray.studies.colored_mnist.running import (
    Reproduction,
    Request,
    Run,
    StepAccuracies,
    StudyPlan,
    moments,
    planned,
)
from difc_ray.studies.colored_mnist.table import FLAW, Figure, footnotes, markdown, numbers, rows_of
from difc_ray.sweeps.trials import trial_config
from difc_ray.tracking import entries
from tests.runs import run_inline, train

HIDDEN = 12
ANNEAL, UPDATES = 4, 8


def request(names: str, restarts: int = 1, output: Path | None = None, **changes: Any) -> Request:
    settings = changes.pop("settings", [f"model_options.hidden=[{HIDDEN},{HIDDEN}]"])
    return Request(
        methods=methods_of(names), restarts=restarts, digits=None, output=output, settings=settings, **changes
    )


@cache
def plan(names: str) -> StudyPlan:
    return planned(request(names))


def config_of(name: str) -> Config:
    """The run of a method with a small network, annealed after a few steps."""
    point = plan(name).points[0]
    config = trial_config(plan(name).base, point, Path("/nowhere"))
    if config.alignment.anneal.steps == 0:
        return config
    anneal = config.alignment.anneal.model_copy(update={"steps": ANNEAL})
    return config.model_copy(update={"alignment": config.alignment.model_copy(update={"anneal": anneal})})


class Script:
    """The published scripts' training loop in plain torch and float64, every penalty by autograd.

    Args:
        config: of the run whose data and initial weights it takes.
    """

    def __init__(self, config: Config) -> None:
        domains = [load_domain(config, name) for name in ("e20", "e10")]
        batches = [next(iter(domain.evaluation_batches("train", domain.size("train")))) for domain in domains]
        self.envs = [(b.images.double().flatten(1), b.labels.double()) for b in batches]
        flat, start = prepare(config, None).state.theta_P.double(), 0
        self.params: list[Tensor] = []
        for shape in ((HIDDEN, 392), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (1, HIDDEN), (1,)):
            size = math.prod(shape)
            self.params.append(flat[start : start + size].view(shape).clone().requires_grad_())
            start += size
        assert start == len(flat)
        self.head = self.params[-2:]

    def logits(self, e: int, factor: Tensor | float = 1.0) -> Tensor:
        w1, b1, w2, b2, w3, b3 = self.params
        hidden = functional.relu(functional.relu(self.envs[e][0] @ w1.T + b1) @ w2.T + b2)
        return ((hidden @ w3.T + b3) * factor)[:, 0]

    def nll(self, e: int, factor: Tensor | float = 1.0) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.logits(e, factor), self.envs[e][1])

    def gradient(self, value: Tensor) -> Tensor:
        return flat_of(torch.autograd.grad(value, self.head, create_graph=True))

    def products(self, value: Tensor) -> Tensor:
        """H g as ‖g‖ ∇‖g‖."""
        norm = self.gradient(value).norm()
        return norm * self.gradient(norm)

    def diagonal(self, value: Tensor) -> Tensor:
        gradient = self.gradient(value)
        return torch.stack([self.gradient(each)[i] for i, each in enumerate(gradient)])

    def about_the_mean(self, statistic: Callable[[Tensor], Tensor]) -> Tensor:
        """Σ_e ‖s(R_e) − s((R_0 + R_1) / 2)‖²."""
        mean = statistic((self.nll(0) + self.nll(1)) / 2)
        return sum(((statistic(self.nll(e)) - mean).square().sum() for e in range(2)), torch.zeros(()))

    def irm(self) -> Tensor:
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        found = [torch.autograd.grad(self.nll(e, scale), scale, create_graph=True)[0].square() for e in range(2)]
        return sum(found, torch.zeros(())) / 2

    def fishr(self) -> Tensor:
        variances = []
        for e in range(2):
            images, labels = self.envs[e]
            w1, b1, w2, b2, w3, b3 = self.params
            z = functional.relu(functional.relu(images @ w1.T + b1) @ w2.T + b2)
            r = torch.sigmoid(z @ w3.T + b3) - labels[:, None]  # the gradient of one example is r (z, 1)
            variances.append(torch.cat([r * z, r], 1).var(0, correction=0))
        mean = (variances[0] + variances[1]) / 2
        return sum(((v - mean).square().sum() for v in variances), torch.zeros(()))

    def penalty(self, name: str) -> Tensor:
        by_name: dict[str, Callable[[], Tensor]] = {
            "irm": self.irm,
            "vrex": lambda: (self.nll(0) - self.nll(1)).square(),
            "fishr": self.fishr,
            "gradient": lambda: self.about_the_mean(self.gradient),
            "hessian": lambda: self.about_the_mean(self.diagonal),
            "hgp": lambda: self.about_the_mean(self.products) + self.about_the_mean(self.gradient),
            "hutchinson_exact": lambda: self.about_the_mean(self.diagonal) + self.about_the_mean(self.gradient),
        }
        return by_name[name]()

    def train(self, name: str) -> Tensor:
        optimizer = torch.optim.Adam(self.params, lr=0.0004898536566546834)
        for step in range(UPDATES):
            loss = (self.nll(0) + self.nll(1)) / 2
            loss = loss + 0.00110794568 * sum(p.norm().square() for p in self.params)
            weight = LAMBDA if step >= ANNEAL else 1.0
            if name != "erm":
                loss = loss + weight * self.penalty(name)
                loss = loss / weight if weight > 1 else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return flat_of(self.params)


def flat_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


SCRIPTED = ["erm", "irm", "vrex", "fishr", "gradient", "hessian", "hgp", "hutchinson_exact"]


@pytest.mark.parametrize("name", SCRIPTED)
def test_our_steps_are_those_of_the_published_scripts(name: str) -> None:
    config = config_of(name)
    start = prepare(config, None).state.theta_P.double()
    found = run_inline(config, UPDATES)[0].theta_P.double()
    expected = Script(config).train(name).detach()
    error = float((found - expected).norm() / (expected - start).norm())
    assert error < 2e-5  # that of float32; a mean in place of a sum, in any penalty, is 2e-4 and more


def test_the_recipe_is_the_published_one() -> None:
    config = trial_config(planned(request("hutchinson", settings=[])).base, plan("hutchinson").points[0], Path("/n"))
    assert (config.steps, config.batch_size, config.dataset, config.loss) == (501, 1785, "colored_mnist_5k", "bce")
    assert config.model_options == {"hidden": [390, 390], "init": "xavier_uniform"}
    anneal, alignment = config.alignment.anneal, config.alignment
    assert (anneal.weight_before, anneal.steps, anneal.weight_after) == (1.0, 190, LAMBDA)
    assert anneal.rescale_loss
    assert not anneal.reset_optimizer
    assert (alignment.probes, alignment.probe_sets, alignment.detach_mean) == (150, "released", False)
    assert (alignment.alpha, alignment.beta, alignment.reduction) == (1.0, 1.0, "sum")


def test_methods_of_a_restart_share_data_and_weights() -> None:
    found = planned(request("erm,fishr,hgp+ghpp", restarts=2))
    configs = [trial_config(found.base, point, Path("/n")) for point in found.points]
    assert [found.method(point) for point in found.points[:3]] == ["erm", "fishr", "hgp+ghpp"]
    assert [(c.seed, c.dataset_options["draw"]) for c in configs] == [(0, 0)] * 3 + [(1, 1)] * 3
    states = [prepare(config, None).state.theta_P for config in configs]
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[3])
    assert configs[2].harmonize.rule == "ghpp"
    assert configs[2].harmonize.between == "tasks"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_steps(name: str) -> None:
    _, records = run_inline(config_of(name), ANNEAL + 2)
    assert not any(record.skipped for record in records)
    assert bool(records[-1].penalty) == (name not in ("erm", "mixup", "group_dro"))


def test_the_methods_of_domainbed_have_its_defaults() -> None:
    configs = {name: config_of(name) for name in ("coral", "mmd", "dann_domain", "mixup", "group_dro")}
    for name in ("coral", "mmd", "dann_domain"):
        alignment = configs[name].alignment
        assert (configs[name].objective, alignment.alpha, alignment.reduction) == (name, 1.0, "mean")
        assert alignment.anneal.weight_after == alignment.anneal.weight_before == 1.0
    assert (configs["mixup"].objective, configs["mixup"].alignment.mixup) == ("mixup", 0.2)
    assert (configs["group_dro"].objective, configs["group_dro"].harmonize.rule) == ("erm", "group_dro")
    assert configs["group_dro"].harmonize.options == {"rate": 0.01}
    assert not set(configs) & set(DEFAULT)


BAD = {
    "unknown": ({"methods": "erm,fisher"}, "got `fisher`.*Did you mean `fishr`"),
    "no penalty": ({"methods": "erm+gh"}, "without a penalty"),
    "no penalty either": ({"methods": "mixup+ghpp"}, "`mixup[+]ghpp` without a penalty"),
    "twice": ({"methods": "erm,erm"}, "given once"),
    "none": ({"methods": ","}, "must name a method"),
    "no restart": ({"restarts": "0"}, "`--restarts` must be an integer >= 1, got 0"),
    "experiment": ({"experiment": "colored-mnits"}, "Did you mean `colored-mnist`"),
    "selection": ({"selection": "oracle"}, "`last` or `train`"),
    "seed": ({"settings": ["seed=3"]}, "sets `seed` itself"),
    "of a method": ({"settings": ["alignment.alpha=3"]}, "sets `alignment.alpha` itself.*`fishr`"),
    "steps": ({"settings": ["steps=10"]}, "above 10"),
    "one source": ({"settings": ["sources=e20"]}, "at least two source domains"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_write_nothing(case: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"experiment": "colored-mnist", "restarts": "1", "methods": "fishr", "digits": None,
                             "output": tmp_path / "out", "selection": "last", "settings": []}  # fmt: skip
    changes, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        run_reproduction(**{**given, **changes})
    assert not (tmp_path / "out").exists()


def test_the_remedy_for_missing_digits_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers there
    asked = dataclasses.replace(request("erm", settings=["dataset_options.download=true"]), digits=tmp_path)
    with pytest.raises(DataError, match="the download of MNIST into"):
        planned(asked)


def test_digits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        planned(dataclasses.replace(request("erm"), digits=tmp_path))


def test_a_folder_holds_one_reproduction(tmp_path: Path) -> None:
    found = planned(request("erm", output=tmp_path))
    sweep = running.SweepFolder(tmp_path / running.SWEEP)
    sweep.path.mkdir()
    sheet = {"name": "sweep", "space": "s", "digest": found.space.digest, "key": "", "trials": []}
    sweep.sheet.write_text(json.dumps(sheet))
    assert planned(request("erm", output=tmp_path)).resume
    with pytest.raises(CheckpointError, match="Choose another `--output`"):
        planned(request("erm", restarts=2, output=tmp_path))


def test_moments_are_the_evaluations_before_the_last_update(tmp_path: Path) -> None:
    config = config_of("erm").model_copy(update={"steps": 4})
    lines: list[dict[str, Any]] = []
    for step in range(1, 5):
        lines.append({"kind": "step", "step": step, "accuracies": {"e20": 0.1, "e10": 0.1}})
        if step in (2, 4):
            lines.append({"kind": "evaluation", "step": step, "val/accuracy/e20": 0.5, "val/accuracy/e10": 0.7,
                          "all/accuracy/e90": 0.1 * step, "all/accuracy/gray": 0.2})  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    at = {step: Measured(train=0.9, gradient=1.0, hessian=1.0) for step in (2, 4)}
    (only,) = moments(path, config, at)
    expected = StepAccuracies(step=2, train=0.9, test=0.2, gray=0.2, validation=0.6)
    assert dataclasses.asdict(only) == pytest.approx(dataclasses.asdict(expected))
    with pytest.raises(CheckpointError, match=r"got nothing of step 2.*another `--output`"):
        moments(path, config, {4: at[4]})


@pytest.mark.parametrize("name", ["erm", "mixup"])
def test_the_training_accuracy_is_that_of_the_examples_as_they_are(name: str, tmp_path: Path) -> None:
    config = config_of(name).model_copy(update={"steps": 3, "eval_every": 1, "output": tmp_path, "name": "run"})
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 1, "keep": 9})})
    run_dir = train(config).run_dir
    found = measured(config, run_dir)
    steps = entries(run_dir / "metrics.jsonl", "step")
    passes = {step["step"] - 1: math.fsum(step["accuracies"].values()) / 2 for step in steps}
    for step in (1, 2):
        assert (found[step].train == passes[step]) == (name == "erm")  # a step of mixup sees blended pictures
    assert measured(config, run_dir) == found
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*")] == ["step-00000003"]


def test_distances_are_those_of_autograd(tmp_path: Path) -> None:
    config = config_of("erm")
    model, loss = model_of(config)
    one, other = (on_all_examples(model, loss, load_domain(config, name))[0] for name in ("e20", "e10"))
    script = Script(config)

    def hessian(e: int) -> Tensor:
        gradient = script.gradient(script.nll(e))
        return torch.stack([script.gradient(each) for each in gradient])

    gradient_distance, hessian_distance = between(one, other)
    difference = (hessian(0) - hessian(1)).detach()
    assert hessian_distance == pytest.approx(float(torch.linalg.matrix_norm(difference, 2)), rel=1e-3)
    apart = (script.gradient(script.nll(0)) - script.gradient(script.nll(1))).detach()
    assert gradient_distance == pytest.approx(float(apart.norm()), rel=1e-4)
    kept = {"7": {"train": 0.5, "gradient": 1.0, "hessian": 2.0}}
    (tmp_path / "measured.json").write_text(json.dumps(kept))
    assert measured(config, tmp_path) == {7: Measured(train=0.5, gradient=1.0, hessian=2.0)}


def run(method: str, restart: int, tests: Sequence[float], validations: Sequence[float]) -> Run:
    found = tuple(
        StepAccuracies(step=10 * (i + 1), train=0.8, test=test, gray=0.7, validation=validation)
        for i, (test, validation) in enumerate(zip(tests, validations, strict=True))
    )
    at = {m.step: Measured(train=0.8, gradient=0.1 / m.step, hessian=(1 - m.test) / m.step) for m in found}
    return Run(method=method, restart=restart, moments=found, measured=at, seconds=2.0)


def reproduction(restarts: int = 5) -> Reproduction:
    asked = request("erm,fishr,fishr+gh", restarts=restarts, settings=["steps=41", "cluster.address=auto"])
    runs = [run("erm", r, (0.2, 0.1 + 0.01 * r), (0.9, 0.8)) for r in range(restarts)]
    runs += [run("fishr", r, (0.5, 0.6 + 0.01 * r), (0.6, 0.7)) for r in range(restarts)]
    return Reproduction(request=asked, base=plan("erm").base, folder=Path("/n"), runs=runs, failed=[],
                        changed=["steps=41"])  # fmt: skip


def test_figures_tell_both_spreads() -> None:
    figure = Figure.of([0.5, 0.6, 0.7])
    assert str(figure) == "60.0 ± 5.8 (8.2)"  # 10 / √3 and 10 · √(2/3)
    assert str(Figure.of([0.5])) == "50.0 (0.0)"


def test_the_table_compares_and_says_what_is_wrong_with_it() -> None:
    found = reproduction()
    rows = rows_of(found)
    erm, fishr = rows
    assert (erm.method, fishr.method, fishr.against) == ("erm", "fishr", "erm")
    assert fishr.difference.mean == pytest.approx(0.5)
    assert fishr.difference.low == pytest.approx(0.5)
    assert (erm.last["test"].mean, erm.chosen["test"].mean) == (pytest.approx(0.12), pytest.approx(0.2))
    assert erm.published == "86.4 (0.2) / 14.0 (0.7) / 71.0 (0.7)"
    text = markdown(found, rows, honest=True)
    assert "# Colored MNIST: colored_mnist_5k, 5 restarts" in text
    assert FLAW in text
    assert "another dataset" in text
    assert "steps=41" in text
    assert "it takes `erm`" in text
    assert len({line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert not any("honest" in note for note in footnotes(found, rows, honest=False))
    assert numbers(found).count("\ncolored_mnist_5k,") == 20


def test_too_few_restarts_have_no_interval() -> None:
    assert "too few for an interval" in markdown(reproduction(2), rows_of(reproduction(2)), honest=False)


def test_pictures_show_every_run(tmp_path: Path) -> None:
    found = reproduction()
    curves, scatter = accuracy_curves(found), distance_scatter(found)
    assert [len([line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_label() in METHODS])
            for axes in curves.axes] == [2, 2, 2]  # fmt: skip
    drawn = sum(len(line.get_xdata()) for line in scatter.axes[0].lines)
    assert drawn == 20
    assert "n = 10" in scatter.axes[0].get_title(loc="left")
    for figure in (curves, scatter):
        figure.savefig(tmp_path / "figure.png")


def test_the_curves_show_where_the_penalty_sets_in() -> None:
    found, whole = reproduction(1), planned(request("fishr", settings=[]))
    annealed = trial_config(whole.base, whole.points[0], Path("/n")).alignment.anneal.steps
    plain = request("erm,coral", settings=[])  # whose weights stay as they are
    for steps, asked, expected in (
        (annealed, found.request, []), (annealed + 1, found.request, [annealed]), (annealed + 1, plain, []),
    ):  # fmt: skip
        base = found.base.model_copy(update={"steps": steps})
        lines = accuracy_curves(dataclasses.replace(found, base=base, request=asked)).axes[0].lines
        assert [line.get_xdata()[0] for line in lines if len(set(line.get_xdata())) == 1] == expected
