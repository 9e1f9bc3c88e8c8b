"""`difc-ray compare` on a real store: a sweep as the tuning writes it, real runs, the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from difc_ray import train
from difc_ray.cli.execution import execute
from difc_ray.comparison import compare, report
from difc_ray.comparison.histories import histories
from difc_ray.config import load_config, resolve
from difc_ray.errors import ConfigError
from difc_ray.tracking import TrackingFolder
from difc_ray.tracking.runs import ATTEMPT_TAG
from tests.cli.shell import Answer, assert_sentences, difc_ray
from tests.mlflow.browser import Browser, find_browser
from tests.mlflow.servers import MlflowServer
from tests.mlflow.sweeps import SOURCES, FakeSweep, fill_alpha_beta

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")]

TINY = {"engine": "inline", "model": "mlp", "steps": 12, "eval_every": 4, "batch_size": 16}
FIGURES = {"differences", "learning_curves", "lambda", "parallel_coordinates", "hessian"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A SQLite store with the sweep `abc`, where runs in the folder `runs` are recorded as well."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "runs").mkdir()
    uri = f"sqlite:///{folder / 'runs' / 'mlflow.db'}"
    sweep = FakeSweep(uri, "abc")
    fill_alpha_beta(sweep)
    return SimpleNamespace(folder=folder, uri=uri, sweep=sweep)


@pytest.fixture(scope="module")
def trained(store: SimpleNamespace) -> dict[str, Path]:
    """Two real runs of a second, by name: their folders."""
    for name, rule, alpha in (("plain", "mean", 0), ("aligned", "ghpp", 0.1)):
        values = {"name": name, "output": str(store.folder / "runs"), "harmonize": {"rule": rule}, **TINY}
        train(resolve(load_config(None, base={**values, "alignment": {"alpha": alpha, "beta": alpha}})))
    return {name: store.folder / "runs" / name for name in ("plain", "aligned")}


@pytest.fixture(scope="module")
def written(store: SimpleNamespace) -> tuple[Answer, Path]:
    """The sweep compared by the command line in a process of its own, and the folder of its report."""
    answer = difc_ray("compare", "abc", "--out", "page", cwd=store.folder)
    assert answer.code == 0, answer.err
    return answer, store.folder / "page"


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(find_browser(), tmp_path)


def final(client: MlflowClient, parent: str, point: int, key: str) -> list[float]:
    """Values of a setting's runs, read another way than the report does."""
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}' and tags.`sweep.point` = '{point}'")
    return [run.data.metrics[key] for run in sorted(runs, key=lambda run: run.data.tags["seed"])]


def test_the_command_prints_the_methods_the_picks_and_the_page(
    store: SimpleNamespace, written: tuple[Answer, Path]
) -> None:
    answer, folder = written
    client = MlflowClient(store.uri)
    numbers = json.loads((folder / "comparison.json").read_text("utf-8"))
    (best, plain) = numbers["methods"]
    assert (best["name"], plain["name"], numbers["baseline"]) == ("ghpp + hutchinson", "mean + erm", "mean + erm")
    point = int(best["setting"]["label"].removeprefix("#"))
    validation = {
        p: np.mean([final(client, store.sweep.parent, p, f"final/val/accuracy/{d}") for d in SOURCES])
        for p in range(1, 7)
    }
    assert point == max(validation, key=validation.__getitem__)
    assert best["among"] == 6
    ours, theirs = (final(client, store.sweep.parent, p, "final/all/accuracy/mnistm") for p in (point, 0))
    assert best["target"]["mean"] == pytest.approx(np.mean(ours))
    assert best["target"]["error"] == pytest.approx(np.std(ours, ddof=1) / np.sqrt(5))
    differences = np.subtract(ours, theirs)
    assert best["difference"]["mean"] == pytest.approx(differences.mean())
    assert differences.min() <= best["difference"]["low"] <= differences.mean() <= best["difference"]["high"]
    line = next(line for line in answer.out.splitlines() if "ghpp + hutchinson" in line and "1" in line)
    assert f"{100 * np.mean(ours):.1f} ± " in line
    assert f"#{point}, best of 6" in line
    assert "leave_one_domain_out" in answer.out
    assert answer.out.splitlines()[-1].split() == ["page", "page/index.html"]


def test_the_report_is_complete_escaped_and_on_the_parent_run(
    store: SimpleNamespace, written: tuple[Answer, Path]
) -> None:
    _, folder = written
    page = (folder / "index.html").read_text("utf-8")
    assert page.count('src="data:image/png;base64,') == len(FIGURES)
    assert not re.findall(r"<(?:script|link|iframe)|(?:src|href)=\"(?!data:)|url\(", page)
    assert "&lt;b&gt;loss&lt;/b&gt;" in page
    assert "<b>" not in page
    for ending in ("stopped at step 40 (asha)", "failed: NumericError", "finished"):
        assert ending in page
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 5
    client = MlflowClient(store.uri)
    held = {artifact.path for artifact in client.list_artifacts(store.sweep.parent, "report")}
    assert held == {f"report/{name}.png" for name in FIGURES} | {"report/index.html", "report/comparison.json"}


def test_the_hessian_distance_is_that_of_the_last_tenth(store: SimpleNamespace) -> None:
    comparison = compare(["abc"], uri=store.uri)
    measured = [run for run in comparison.runs if run.hessian is not None]
    assert len(measured) == 30
    for run in measured:
        alpha = float(run.params["alignment.alpha"])
        assert run.hessian == pytest.approx(0.05 / (1 + alpha))  # three times that before step 90
    assert comparison.hessian is not None
    x, y = zip(*((run.hessian, run.target_accuracy) for run in measured), strict=True)
    assert comparison.hessian.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_real_runs_are_compared_by_folder_and_by_id(
    store: SimpleNamespace, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two"
    assert execute(["compare", *map(str, trained.values()), "--out", str(out)]) == 0
    numbers = json.loads((out / "comparison.json").read_text("utf-8"))
    assert {method["name"] for method in numbers["methods"]} == {"mean + erm", "ghpp + hutchinson"}
    for method, name in zip(sorted(numbers["methods"], key=lambda m: m["name"]), ("aligned", "plain"), strict=True):
        accuracy = json.loads((trained[name] / "summary.json").read_text())["accuracy"]
        assert method["target"]["mean"] == pytest.approx(accuracy["mnistm"]["all"], abs=1e-6)
        sources = [accuracy[domain]["val"] for domain in SOURCES]
        assert method["validation"]["mean"] == pytest.approx(np.mean(sources), abs=1e-6)
        assert method["worst"]["mean"] == pytest.approx(min(sources), abs=1e-6)
    assert "1 pair: too few" in capsys.readouterr().out
    recorded = [TrackingFolder(folder).identity(store.uri) for folder in trained.values()]
    by_id = compare([identity["run_id"] for identity in recorded], uri=store.uri)
    assert {run.name for run in by_id.runs} == {"plain", "aligned"}
    assert [list(run.curve) for run in by_id.runs] == [[4, 8, 12]] * 2
    assert by_id.runs[1].hessian is not None
    assert by_id.runs[0].hessian is None


def test_a_run_that_was_continued_for_longer_is_measured_at_its_new_end(store: SimpleNamespace) -> None:
    sweep = FakeSweep(store.uri, "continued")
    run_id = sweep.trial(
        0, 0, dict.fromkeys(SOURCES, 0.9), 0.5, hessian=[1.0] * 180 + [0.25] * 20,
        tags={ATTEMPT_TAG: "1", "resume.1.steps": "200", "resume.0.steps": "150"},
    )  # fmt: skip
    (run,) = compare([run_id], uri=store.uri).runs
    assert run.hessian == pytest.approx(0.25)
    assert run.params["steps"] == "200"


def test_a_sweep_is_found_by_its_folder(store: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"name": "abc"}))
    done = report([folder], uri=store.uri)
    assert done.report.page == folder / "report" / "index.html"
    assert done.run_id == store.sweep.parent
    other = report([folder], uri=store.uri, baseline="#3")
    assert other.report.page == folder / "report-3" / "index.html"
    assert (other.artifacts, other.comparison.baseline) == ("report-3", "#3")
    assert json.loads(done.report.data.read_text("utf-8"))["baseline"] == "mean + erm"
    (folder / "tracking").mkdir()
    content = {"current": store.uri, "stores": {store.uri: {"run_id": store.sweep.parent, "experiment_id": "1"}}}
    (folder / "tracking" / "run.json").write_text(json.dumps(content))
    (folder / "sweep.json").write_text(json.dumps({"name": "called otherwise"}))
    assert compare([folder]).title == "abc"


def test_a_store_that_takes_no_artifacts_leaves_a_note(store: SimpleNamespace, tmp_path: Path) -> None:
    sweep = FakeSweep(store.uri, "unwritable")
    sweep.trial(1, 0, dict.fromkeys(SOURCES, 0.9), 0.5, rule="mean", objective="erm")
    blocked = Path(MlflowClient(store.uri).get_run(sweep.parent).info.artifact_uri.removeprefix("file://"))
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where a folder should be")
    done = report(["unwritable"], uri=store.uri, out=tmp_path / "out")
    assert done.run_id is None
    assert "did not take the report" in str(done.note)
    assert done.report.page.is_file()


def test_what_cannot_be_compared_is_refused_in_one_sentence(
    store: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = FakeSweep(store.uri, "empty")
    broken = FakeSweep(store.uri, "broken")
    broken.trial(1, 0, None, None, status="FAILED", tags={"error": "WorkerError: gone"})
    targets = FakeSweep(store.uri, "targets")
    targets.trial(1, 0, dict.fromkeys(SOURCES, 0.9), 0.5)
    targets.trial(2, 0, {"mnist": 0.9, "mnistm": 0.8}, 0.5, target="fonts", sources=("mnist", "mnistm"))
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        ((empty.name,), ("a sweep must have runs", "`empty`")),
        ((broken.name,), ("at least one run must have finished", "WorkerError: gone")),
        ((targets.name,), ("same target", "`mnistm`, `fonts`", "--target")),
        (("abd",), ("unknown sweep", "Did you mean `abc`")),
        (("0" * 32,), ("an MLflow run must exist", "0" * 32)),
        ((str(tmp_path / "folder"),), ("without sweep.json and config.yaml",)),
        (("runs/nothing",), ("which does not exist",)),
    ):
        with pytest.raises(ConfigError) as caught:
            compare(arguments, uri=store.uri)
        assert all(word in str(caught.value) for word in words), caught.value
    assert compare([targets.name], uri=store.uri, target="fonts").target == "fonts"
    nowhere = f"sqlite:///{tmp_path / 'none.db'}"
    with pytest.raises(ConfigError, match=r"got `abc` where there is none .* `difc-ray compare .../runs/abc`"):
        compare(["abc"], uri=nowhere)
    with pytest.raises(ConfigError, match="the MLflow store must exist"):
        compare(["0" * 32], uri=nowhere)
    assert not (tmp_path / "none.db").exists()
    code = execute(["compare", "abc", "--uri", store.uri, "--baseline", "meen"])
    assert code == 2
    assert_sentences(
        Answer(code, *capsys.readouterr()), ("unknown baseline", "`meen`", "Known: ghpp + hutchinson, mean + erm")
    )


def test_histories_have_the_latest_value_of_each_step(mlflow_server: MlflowServer) -> None:
    client = MlflowClient(mlflow_server.url)
    experiment = client.create_experiment("histories")
    ids = [client.create_run(experiment).info.run_id for _ in range(3)]
    for index, run_id in enumerate(ids):
        for step in range(1, 6 + index):
            client.log_metric(run_id, "val/accuracy/a", 0.1 * step + index, timestamp=step, step=step)
    client.log_metric(ids[0], "val/accuracy/a", 0.77, timestamp=99, step=3)  # again, after a resume
    logged = {run_id: {step: 0.1 * step + i for step in range(1, 6 + i)} for i, run_id in enumerate(ids)}
    assert histories(client, ids, "val/accuracy/a") == {**logged, ids[0]: {**logged[ids[0]], 3: 0.77}}
    assert {run_id: list(steps) for run_id, steps in histories(client, ids, "val/accuracy/a", (4, 6)).items()} == {
        ids[0]: [4, 5], ids[1]: [4, 5, 6], ids[2]: [4, 5, 6],
    }  # fmt: skip


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_in_a_browser(width: int, written: tuple[Answer, Path], browser: Browser) -> None:
    page = written[1] / "index.html"
    pixels = browser.screenshot(page, width, 2400)
    assert pixels.shape == (2400, width, 3)
    assert len(np.unique(pixels[::3, ::3].reshape(-1, 3), axis=0)) > 50
    thirds = [part.std() for part in np.array_split(pixels, 3)]
    assert min(thirds) > 5, "a third of the page is blank"
    measured = browser.measure(page, width)
    assert measured["window"] == width
    assert measured["page"] <= measured["shown"], "the body scrolls sideways"
    assert measured["beyond"] == []
    assert len(measured["images"]) == len(FIGURES)
    assert min(measured["images"]) > 500
    assert measured["smallest"] >= 12
    assert measured["scrolling"][-1] is (width < 600)  # the table of settings, in its own box
    assert measured["asked"] == []


def test_the_browser_would_notice(written: tuple[Answer, Path], browser: Browser, tmp_path: Path) -> None:
    page = Path(shutil.copy(written[1] / "index.html", tmp_path / "page.html"))
    wide: dict[str, Any] = browser.measure(
        page, 390, extra='<div style="width: 900px">wide</div><img src="http://example.invalid/x.png">'
    )
    assert wide["page"] > wide["shown"]
    assert wide["asked"] == ["http://example.invalid/x.png"]
    light = browser.measure(page, 390)["paper"]
    dark = browser.measure(page, 390, "--force-dark-mode")["paper"]
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(18, 22, 28)")
