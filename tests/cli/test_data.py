"""`difc-ray data check`, and real runs on a folder of pictures with hostile files among them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.shell import Answer, Cli, assert_sentences, difc_ray, environment, table_rows
from tests.waiting import PATIENCE_S

CLASSES = ("circle", "square", "stripes")
BAD = {"photo/circle/empty.png": "an empty file", "photo/square/text.jpg": "no picture in a known format",
       "art/stripes/half.jpg": "runcated", "sketch/circle/gone.png": "a link to nothing",
       "art/circle/new\nline.png": "an empty file"}  # fmt: skip


def shape(kind: str, rng: np.random.Generator, tint: tuple[int, int, int]) -> Image.Image:
    """A drawing of a class in the colours of a domain."""
    y, x = np.mgrid[:28, :28] - rng.integers(10, 18, size=(2, 1, 1))
    ink = {"circle": x**2 + y**2 < 64, "square": np.maximum(abs(x), abs(y)) < 8, "stripes": x % 6 < 3}[kind]
    return Image.fromarray((ink[..., None] * np.array(tint) + rng.integers(0, 50, (28, 28, 3))).astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four domains in different formats, and the bad files."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    kinds = {"photo": ("jpg", (200, 100, 100)), "art": ("png", (60, 200, 60)), "cartoon": ("webp", (90, 90, 200)),
             "sketch": ("bmp", (200, 200, 200))}  # fmt: skip
    for domain, (ending, tint) in kinds.items():
        for kind in CLASSES:
            (folder / domain / kind).mkdir(parents=True)
            for i in range(20):
                shape(kind, rng, tint).save(folder / domain / kind / f"{i:02}.{ending}")
    (folder / "photo/circle/empty.png").touch()
    (folder / "photo/square/text.jpg").write_text("not a picture")
    (folder / "art/stripes/half.jpg").write_bytes((folder / "photo/stripes/00.jpg").read_bytes()[:400])
    (folder / "sketch/circle/gone.png").symlink_to("nowhere.png")
    (folder / "art/circle/new\nline.png").touch()
    for child in (folder / "cartoon" / "stripes").iterdir():
        child.unlink()
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def asked(root: Path) -> tuple[str, ...]:
    return ("dataset=image_folder", f"root={root}", "sources=photo,art,cartoon", "target=sketch", "image_size=28")


def run(root: Path, *more: str) -> tuple[str, ...]:
    return ("train", *asked(root), "batch_size=8", "eval_every=3", "tracking.mode=off", "name=pictures", *more)


def rows(text: str, columns: int) -> list[list[str]]:
    """Cells of the lines of printed tables with so many columns."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return [cells for cells in lines if len(cells) == columns]


@pytest.mark.process
def test_data_check_lists_every_bad_file(root: Path, tmp_path: Path) -> None:
    answer = difc_ray("data", "check", *asked(root), cwd=tmp_path)
    assert (answer.code, answer.err) == (3, "")
    found = {cells[1]: (cells[0], cells[2]) for cells in rows(answer.out, 3)}
    assert found.keys() == {name.replace("\n", "\\n") for name in BAD}
    for name, reason in BAD.items():
        domain, told = found[name.replace("\n", "\\n")]
        assert domain == name.split("/")[0]
        assert reason in told
    by_domain = {cells[0]: cells[1:4] for cells in rows(answer.out, 5)}
    assert by_domain == {
        "photo": ["source", "62", "2"], "art": ["source", "62", "2"], "cartoon": ["source", "40", "0"],
        "sketch": ["held out", "61", "1"],
    }  # fmt: skip
    assert "circle: 21, square: 21, stripes: 20" in answer.out
    assert "missing       cartoon: none of stripes" in answer.out
    assert "5 of 225 examples cannot be used" in answer.out
    assert not (tmp_path / "runs").exists()


SEVERAL = """
import sys
from difc_ray.cli import main, reading
if __name__ == "__main__":
    reading.FEW, reading.usable_cpus = 0, lambda: 2
    main(sys.argv[1:])
"""
"""A command line that reads files in two processes, however few there are."""


@pytest.mark.process
def test_data_check_in_several_processes_says_the_same(root: Path, cli: Cli, tmp_path: Path) -> None:
    alone = cli("data", "check", *asked(root))
    script = tmp_path / "several.py"
    script.write_text(SEVERAL)
    done = subprocess.run(
        [sys.executable, str(script), "data", "check", *asked(root)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (alone.code, alone.out, "")
    assert done.returncode == 3


def test_long_lists_are_shortened(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from difc_ray.cli import examples

    monkeypatch.setattr(examples, "SHOWN", 2)
    short = cli("data", "check", *asked(root))
    assert len(rows(short.out, 3)) == 2
    assert "3 more; `--all` lists them." in short.out
    assert len(rows(cli("data", "check", "--all", *asked(root)).out, 3)) == 5


def test_other_datasets_are_clean(cli: Cli) -> None:
    answer = cli("data", "check", "sources=optdigits,fonts", "target=")
    assert (answer.code, answer.err) == (0, "")
    assert "all 3797 examples can be used" in answer.out


def test_wrong_uses(root: Path, cli: Cli, tmp_path: Path) -> None:
    assert_sentences(cli("data", "chek"), ("got `chek`", "Did you mean `check`?"))
    assert_sentences(cli("data", "check", *asked(root)[:-2], "target=skech"), ("got `skech`", "Did you mean `sketch`?"))
    assert_sentences(cli("data", "check", "dataset=image_folder", "sources=a,b", "target=c"), ("`root` must", "null"))
    for domain, kind in (("a", "cat"), ("a", "dog"), ("b", "fox"), ("b", "cat")):
        (tmp_path / "few" / domain / kind).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "few" / domain / kind / "x.png")
    only = cli("data", "check", "dataset=image_folder", f"root={tmp_path / 'few'}", "sources=a", "target=b",
               "harmonize.rule=mean", "alignment.alpha=0", "alignment.beta=0")  # fmt: skip
    assert only.code == 3
    assert "every class of target domain `b` must have examples in a source, got none of `fox`" in only.out


def test_domains_shows_missing_classes(root: Path, cli: Cli) -> None:
    answer = cli("domains", "dataset=image_folder", f"root={root}", "sources=photo,art", "target=sketch")
    assert answer.code == 0, answer.err
    assert "circle: 20, square: 20, stripes: 0" in answer.out


def test_domains_of_a_dataset_before_any_is_named(root: Path, cli: Cli) -> None:
    """What there is must be told before it can be named: only what decides that must be right."""
    answer = cli("domains", "dataset=image_folder", f"root={root}")
    assert answer.code == 0, answer.err
    assert "circle: 20, square: 20, stripes: 0" in answer.out
    assert [line for line in answer.out.splitlines() if line.startswith(("digits ", "fashion "))] == []
    for settings, words in (
        (("root=nowhere",), "which does not exist"),
        ((f"root={root / 'photo'}",), f"Write `root={root}`"),
        ((f"root={root}", "image_sise=3"), "`image_size`"),
        ((f"root={root}", "steps=0"), "`steps` must be"),
    ):
        answer = cli("domains", "dataset=image_folder", *settings)
        assert answer.code in (2, 3)
        assert words in answer.err


def test_a_bad_file_ends_a_run_with_its_path(root: Path, cli: Cli) -> None:
    answer = cli(*run(root, "engine=inline", "model=mlp", "steps=30"))
    assert answer.code == 3
    (line,) = answer.errors
    assert any(f"`{name}`, {reason}".replace("\n", "\\n") in line for name, reason in BAD.items()), line
    assert "on_bad_image=skip" in line


@pytest.mark.process
def test_a_run_that_skips_bad_files(root: Path, tmp_path: Path) -> None:
    answer = difc_ray(*run(root, "engine=inline", "model=lenet", "steps=6", "on_bad_image=skip"), cwd=tmp_path)
    check_run(answer, tmp_path)
    summary = json.loads((tmp_path / "runs" / "pictures" / "summary.json").read_text())
    assert summary["bad_images"] == {"photo": 2, "art": 2, "sketch": 1}
    assert "bad images    photo 2, art 2, sketch 1; others stood in for them" in answer.out


@pytest.mark.process
@pytest.mark.slow
def test_a_run_on_ray_ends_as_the_inline_one(root: Path, cli: Cli, tmp_path: Path) -> None:
    """Augmented by loader processes there, and by the process that trains here."""
    common = ("sources=photo,art,cartoon", "model=mlp", "steps=4", "on_bad_image=skip", "augment=domainbed")
    settings = [each for each in run(root) if not each.startswith(("sources=", "name="))]
    answer = difc_ray(*settings, *common, "engine=ray", "name=ray", "loader.processes=2", cwd=tmp_path)
    assert answer.code == 0, answer.err
    assert "bad images    photo 2, art 2, sketch 1; others stood in for them" in answer.out
    other = cli(*settings, *common, "engine=inline", "name=inline", "loader.processes=0")
    assert other.code == 0, other.err
    ray, inline = ((tmp_path / "runs" / name / "export" / "weights.safetensors") for name in ("ray", "inline"))
    assert ray.read_bytes() == inline.read_bytes()


@pytest.mark.slow
def test_a_pipeline_that_changed_is_noticed(root: Path, cli: Cli, tmp_path: Path) -> None:
    import albumentations

    def write(*transforms: object) -> None:
        pipeline = albumentations.Compose([albumentations.Resize(28, 28), *transforms])
        albumentations.save(pipeline, tmp_path / "mine.yaml", data_format="yaml")

    write(albumentations.HorizontalFlip(p=0.5))
    settings = [each for each in run(root) if not each.startswith("name=")]
    common = ("engine=inline", "model=mlp", "on_bad_image=skip", "augment=mine.yaml", "name=own")
    first = cli(*settings, *common, "steps=3")
    assert first.code == 0, first.err
    kept = (tmp_path / "runs" / "own" / "augmentation.yaml").read_text()
    assert "HorizontalFlip" in kept
    write(albumentations.HorizontalFlip(p=0.9))
    again = cli("train", "resume=runs/own", "steps=5")
    assert again.code == 6
    (line,) = again.errors
    assert "the augmentation must be that of the run which is continued" in line
    (tmp_path / "mine.yaml").write_text(kept)
    assert cli("train", "resume=runs/own", "steps=5", "loader.processes=1").code == 0


def test_an_exported_dataset_is_read_back(cli: Cli, tmp_path: Path) -> None:
    from difc_ray.data import open_domain, open_family

    answer = cli("data", "export", "out", "sources=optdigits,fonts", "target=mnistm", "--limit", "7")
    assert answer.code == 0, answer.err
    assert "210 pictures of 3 domains" in answer.out
    read = open_family("image_folder", {}, tmp_path / "out", 0, 28)
    digits = open_family("digits", {}, None, 0)
    assert read.class_names == digits.class_names
    for name in ("optdigits", "mnistm"):
        mine, theirs = open_domain("image_folder", read, name), open_domain("digits", digits, name)
        for number in range(10):
            here, there = np.flatnonzero(mine.labels == number), np.flatnonzero(theirs.labels == number)[:7]
            assert np.array_equal(mine.fitted(here), theirs.fitted(there))
    again = cli("data", "export", "out")
    assert again.code == 2
    assert "the folder must be new or empty, got `out`" in again.err


SHEET = [
    ("an ending", ("-o", "sheet.gif"), 2, "the picture must be `.png`, `.svg`, `.pdf`, got `sheet.gif`"),
    ("a folder", ("-o", "nowhere/sheet.png"), 2, "the picture must be writable, got No such file or directory"),
    ("an augmentation", ("augment=domainbet",), 2, "Did you mean `domainbed`?"),
    ("no class", ("--classes", "0"), 2, "Invalid value for '--classes': Input should be greater than or equal to 1"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), [case[1:] for case in SHEET], ids=[case[0] for case in SHEET]
)
def test_contact_sheets_that_cannot_be(
    root: Path, cli: Cli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    answer = cli("data", "show", *asked(root), *arguments)
    assert answer.code == code
    assert message in answer.err


def test_a_contact_sheet(root: Path, cli: Cli, tmp_path: Path) -> None:
    """With augmentation there are two pictures of each class side by side."""
    widths = []
    for augment in ("none", "light"):
        answer = cli("data", "show", *asked(root), f"augment={augment}", "on_bad_image=skip", "-o", f"{augment}.png")
        assert answer.code == 0, answer.err
        assert "4 domains, 3 of 3 classes" in answer.out
        with Image.open(tmp_path / f"{augment}.png") as sheet:
            widths.append(sheet.width)
    assert widths[1] > 1.5 * widths[0]


def check_run(answer: Answer, folder: Path) -> None:
    """The run has ended, with figures for every domain and the classes in order."""
    assert answer.code == 0, answer.err
    assert table_rows(answer.out).keys() == {"photo", "art", "cartoon", "sketch"}
    exported = json.loads((folder / "runs" / "pictures" / "export" / "model.json").read_text())
    assert tuple(exported["class_names"]) == CLASSES
    assert exported["image_shape"] == [3, 28, 28]
