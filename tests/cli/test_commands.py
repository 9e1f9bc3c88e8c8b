"""The commands as a user runs them: real processes, real files, a real MLflow store."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from difc_ray import __version__
from difc_ray.cli.app import app
from difc_ray.config import documentation
from difc_ray.tracking import SyncReport
from tests.cli import user_module
from tests.cli.shell import MODULE, ROOT, SENTENCE, Answer, Cli, environment, started, table_rows
from tests.ports import free_port
from tests.waiting import PATIENCE_S

COMMANDS = tuple(typer.main.get_command(app).commands)

PNG = b"\x89PNG\r\n\x1a\n"


def test_train_prints_what_the_summary_says(trained_once: tuple[Path, Answer]) -> None:
    output, answer = trained_once
    run_dir = output / "first"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 6
    assert table_rows(answer.out) == shown(summary["accuracy"])
    worst = min(("mnist", "optdigits", "fonts"), key=lambda name: summary["accuracy"][name]["val"])
    assert f"worst source  {worst}, {summary['accuracy'][worst]['val']:.1%} on val" in answer.out
    for line in (
        f"run           {run_dir}",
        f"checkpoint    {summary['checkpoint']} (step {summary['selected_step']}, ",
    ):
        assert line in answer.out
    assert f"training      {summary['wall_s']:.0f} s" in answer.out
    between = "between alignment and classification, before harmonization"
    assert f"conflicts     in {summary['conflict_share']:.0%} of the steps, {between}" in answer.out
    assert f"in sqlite:///{output}/mlflow.db" in answer.out
    assert f"mlflow ui --backend-store-uri sqlite:///{output}/mlflow.db" in answer.out
    while_training = answer.out.split("evaluating ...")[0].split("\n", 1)[1]
    assert "mnistm" not in while_training
    assert "compute" in while_training
    assert answer.err == ""


def shown(accuracy: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Accuracies as the table shows them."""
    splits = ("train", "val", "test", "all")
    return {name: [f"{m[split]:.1%}" if split in m else "" for split in splits] for name, m in accuracy.items()}


@pytest.fixture(scope="module")
def at_once(trained_once: tuple[Path, Answer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What four commands answer that know nothing of each other, so that they may run at the same time."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("evaluate", "sync", "doctor", "head")}
    for name in ("evaluate", "sync"):
        shutil.copytree(trained_once[0] / "first", folders[name] / "runs" / "first")
    (folders["head"] / "squares.py").write_text(user_module.TEXT)
    train = shlex.join([*MODULE, "train", "engine=inline", "name=p", "tracking.mode=off", *user_module.SETTINGS])
    commands = {
        "evaluate": [*MODULE, "evaluate", "runs/first"],
        "sync": [*MODULE, "sync", "runs/first", "--uri", "sqlite:///other.db"],
        "doctor": [*MODULE, "doctor"],
        "head": ["bash", "-c", f'{train} | head -1; exit "${{PIPESTATUS[0]}}"'],
    }
    processes = {name: started(command, folders[name]) for name, command in commands.items()}
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=3 * PATIENCE_S)
        found[name] = Answer(process.returncode, out, err, folders[name])
    return found


def test_evaluate_prints_the_same_table_and_draws(at_once: dict[str, Answer]) -> None:
    answer = at_once["evaluate"]
    trained = answer.folder / "runs" / "first"
    assert (answer.code, answer.err) == (0, "")
    summary = json.loads((trained / "summary.json").read_text())
    assert table_rows(answer.out) == shown(summary["accuracy"])
    assert f"step-{summary['selected_step']:08d} (step {summary['selected_step']}, train_domain_val)" in answer.out
    for domain in ("mnist", "optdigits", "fonts", "mnistm"):
        figure = trained / "figures" / f"evaluate_confusion_{domain}.png"
        assert figure.read_bytes().startswith(PNG)
        assert str(figure) in answer.out


def test_the_printed_configuration_is_a_configuration_file(cli: Cli, tmp_path: Path) -> None:
    settings = ("steps=7", "harmonize.rule=gh", "sources=mnist,fonts", "optimizer.lr=3e-4", "model_options.dropout=0.5")
    printed = cli("config", "--print", "name=x", *settings)
    assert (printed.code, printed.err) == (0, "")
    (tmp_path / "again.yaml").write_text(printed.out)
    again = cli("config", "--print", "--config", "again.yaml")
    assert (again.code, again.out) == (0, printed.out)
    tree = yaml.safe_load(printed.out)
    assert (tree["steps"], tree["optimizer"]["lr"], tree["sources"]) == (7, 3e-4, ["mnist", "fonts"])
    assert tree["output"] == str(tmp_path / "runs")


def test_config_lists_every_key_on_a_line(cli: Cli) -> None:
    answer = cli("config", "steps=7")
    lines = answer.out.splitlines()
    for key, _, _, meaning in documentation():
        line = next(line for line in lines if line.startswith(f"{key}="))
        assert meaning.split(";")[0] in line
    assert any(line.startswith("steps=7 ") and line.endswith("(default: 300)") for line in lines)
    assert any(line.startswith("model=lenet ") and "lenet, mlp" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_config_lists_the_options_of_what_is_chosen(cli: Cli) -> None:
    answer = cli("config", "loss=ldam", "loss_options.beta=0.5", "model=mlp", "harmonize.rule=mgda")
    lines = answer.out.splitlines()
    for start, words in {
        "model_options.hidden=[256, 256] ": "each >= 1. (a non-empty list of integers >= 1)",
        "loss_options.beta=0.5 ": "(a number in [0, 1)) (default: 0.9999)",
        "loss_options.bump=0.02 ": "(a finite number >= 0)",
        "harmonize.options.solver=exact ": "one of `exact`, `frank_wolfe`",
    }.items():
        line = next(line for line in lines if line.startswith(start))
        assert words in line
    assert not [line for line in lines if line.startswith(("alignment.options.", "harmonize.options.lam"))]


def test_domains_lists_sizes_and_class_counts(cli: Cli) -> None:
    answer = cli("domains")
    digits = answer.out.split("\ndigits  ")[1].split("classes  ")[0]  # other tests register datasets too
    rows = {cells[0]: cells[1:] for line in digits.splitlines() if len(cells := split_row(line)) == 6}
    assert rows["mnist"] == ["2000", "250", "250", "2500", "250 each"]
    assert rows["fonts"][3:] == ["2000", "200 each"]
    counts = [int(count) for count in re.findall(r": (\d+)", rows["optdigits"][4])]
    assert (len(counts), sum(counts), min(counts), max(counts)) == (10, 1797, 174, 183)
    assert set(rows) >= {"mnist", "mnistm", "optdigits", "fonts"}


def split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("│").removesuffix("│").split("│")]


def test_doctor_finds_nothing(at_once: dict[str, Answer]) -> None:
    answer = at_once["doctor"]
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert [line[9:23].strip() for line in lines] == ["versions", "gpu", "shared memory", "output", "mlflow", "ray"]
    assert all(line.startswith("ok  ") for line in lines)
    assert f"difc-ray {__version__}" in lines[0]
    assert not list(answer.folder.iterdir())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_doctor_names_every_remedy(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    answer = cli("doctor", "output=taken", f"tracking.uri=http://ann:s3cret@127.0.0.1:{free_port()}",
                 "cluster.cpus_per_worker=3")  # fmt: skip
    found = {line[9:23].strip(): line for line in answer.out.splitlines()}
    assert answer.code == 4
    assert {name for name, line in found.items() if line.startswith("problem")} == {"output", "mlflow", "ray"}
    assert "Name another folder" in found["output"]
    assert "cannot be reached" in found["mlflow"]
    assert "difc-ray sync" in found["mlflow"]
    assert "CPU: wanted 12, available 4" in found["ray"]
    assert "`cluster.cpus_per_worker`" in found["ray"]
    assert "s3cret" not in answer.out + answer.err


def test_sync_sends_everything_to_another_store(at_once: dict[str, Answer]) -> None:
    answer = at_once["sync"]
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"sent +\d\d+ record\(s\); 0 waiting, 0 refused", answer.out)
    with contextlib.closing(sqlite3.connect(answer.folder / "other.db")) as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("first", "FINISHED")]


def test_sync_says_what_waits(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = SyncReport(uri="http://h:1", run_id=None, sent=0, pending=3, refused=0, ui_command="open", message="Down?")
    monkeypatch.setattr("difc_ray.tracking.sync", lambda run_dir, uri: report)
    answer = cli("sync", str(trained))
    assert answer.code == 4
    assert "3 waiting" in answer.out
    assert "note Down?" in answer.out
    assert "open MLflow" not in answer.out  # there is no run yet


@pytest.mark.process
def test_the_script_is_the_module(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"difc-ray": "difc_ray.cli:main"}
    as_script = [sys.executable, "-c", "import sys; from difc_ray.cli import main; sys.exit(main())"]
    installed = Path(sys.executable).with_name("difc-ray")
    ways = [[*MODULE], as_script, *([[str(installed)]] if installed.exists() else [])]
    for arguments in (["train", "-h"], ["trian"]):
        answers = [started([*way, *arguments], tmp_path).communicate(timeout=PATIENCE_S) for way in ways]
        assert all(answer == answers[0] for answer in answers)
        assert any(answers[0])


@pytest.mark.process
def test_help_is_quick_and_complete(tmp_path: Path) -> None:
    """Nothing heavy is imported before a command runs, and every command explains itself."""
    program = """
import sys
from difc_ray.cli.execution import execute
for arguments in ([], ["--help"], ["--version"], *([name, "-h"] for name in sys.argv[1:])):
    assert execute(arguments) == 0, arguments
heavy = {"torch", "ray", "mlflow", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    assert set(COMMANDS) >= {"train", "evaluate", "config", "domains", "doctor", "sync"}
    done = subprocess.run(
        [sys.executable, "-c", program, *COMMANDS], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert f"Usage: difc-ray {name}" in done.stdout
    assert f"difc-ray {__version__}" in done.stdout


def test_a_reader_that_goes_away_ends_nothing(at_once: dict[str, Answer], tmp_path: Path) -> None:
    """Neither a run, whose lines go straight to standard output, nor a table."""
    answer = at_once["head"]
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 1)
    assert json.loads((answer.folder / "runs" / "p" / "summary.json").read_text())["steps"] == 5
    command = f'{shlex.join(MODULE)} config | head -1; exit "${{PIPESTATUS[0]}}"'
    process = started(["bash", "-c", command], tmp_path)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err, len(out.splitlines())) == (0, "", 1)


def test_an_unexpected_error_before_a_run_shows_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object, *, alone: bool) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("difc_ray.cli.tables.print_domains", broken)
    answer = cli("domains")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert SENTENCE.fullmatch(answer.errors[-1])
    assert "got KeyError: 'oh' (test_commands.py, line" in answer.errors[-1]
