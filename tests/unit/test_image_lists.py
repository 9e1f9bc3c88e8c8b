"""Split lists and manifests of `image_folder`."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from difc_ray.config import load_config, resolve
from difc_ray.data import MalformedDataError, open_family
from tests.pictures import SIDE, opened, picture, tree

pytestmark = pytest.mark.usefixtures("own_cache")


# Split lists and manifests.


def lists(root: Path, lines: dict[str, list[str]]) -> Path:
    for name, text in lines.items():
        (root / name).write_text("\n".join(text) + "\n", encoding="utf-8", errors="surrogateescape")
    return root


def test_split_lists_are_used_and_validation_comes_out_of_train(tmp_path: Path) -> None:
    root = tree(tmp_path, {"real": {"cat": 40, "dog": 40}, "paint": {"cat": 3, "owl": 3}})
    train = [f"real/{name}/{i:03}.png {label}" for label, name in enumerate(("cat", "dog")) for i in range(30)]
    test = [f"real/{name}/{i:03}.png {label}" for label, name in enumerate(("cat", "dog")) for i in range(30, 40)]
    lists(root, {"real_train.txt": train, "real_test.txt": test})
    family = open_family("image_folder", {}, root, 0, SIDE)
    assert (family.domain_names(), family.class_names) == (("paint", "real"), ("cat", "dog", "owl"))
    domain = opened(root, "real")
    names = {
        split: {domain.path_of(i) for i in domain.split_indices(split).tolist()} for split in ("train", "val", "test")
    }
    assert names["test"] == {line.split()[0] for line in test}
    assert names["train"] | names["val"] == {line.split()[0] for line in train}
    assert domain.size("val") == 7  # a ninth of 60
    assert domain.class_counts("val").tolist() in ([3, 4, 0], [4, 3, 0])
    assert opened(root, "real", seed=1).split_indices("val").tolist() != domain.split_indices("val").tolist()
    assert opened(root, "real", seed=1).split_indices("test").tolist() == domain.split_indices("test").tolist()
    assert domain.fault(0) == ""


LIST_ERRORS: dict[str, tuple[dict[str, list[str]], str]] = {
    "one list": ({"a_train.txt": ["a/cat/000.png 0"]}, "got `a_train.txt` without `a_test.txt`"),
    "no label": ({"a_train.txt": ["a/cat/000.png"], "a_test.txt": []}, "must read `path label`, got `a/cat/000.png`"),
    "two classes": (
        {"a_train.txt": ["a/cat/000.png 0", "a/dog/000.png 0"], "a_test.txt": []},
        "label `0` must stand for one class in all lists, got `dog` after `cat` (dataset `image_folder`, "
        "`a_train.txt`, line 2)",
    ),
    "twice": (
        {"a_train.txt": ["a/cat/000.png 0", "a/dog/000.png 1"], "a_test.txt": ["a/./cat/000.png 0"]},
        "listed once in its domain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIST_ERRORS)
def test_wrong_lists(tmp_path: Path, kind: str) -> None:
    lines, words = LIST_ERRORS[kind]
    root = lists(tree(tmp_path, {"a": {"cat": 2, "dog": 2}}), lines)
    with pytest.raises(MalformedDataError) as raised:
        open_family("image_folder", {}, root, 0)
    assert words in str(raised.value)


def test_listed_files_that_are_missing_or_outside_are_bad_files(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"a": {"cat": 2, "dog": 2}})
    picture(tmp_path / "out.png")
    train = ["a/cat/000.png 0", "a/dog/000.png 1", "a/dog/gone.png 1", "../out.png dog"]
    lists(root, {"a_train.txt": train, "a_test.txt": ["a/cat/001.png 0"]})
    domain = opened(root, "a")
    faults = {domain.path_of(i): fault for i in range(5) if (fault := domain.fault(i))}
    assert faults.keys() == {"a/dog/gone.png", "../out.png"}
    assert faults["a/dog/gone.png"] == "no such file"
    assert faults["../out.png"].startswith("a path out of `root`")


ROWS = [
    {"path": f"{d}/{c}/{i:03}.png", "label": c, "domain": f"the {d}", "split": s}
    for d in ("a", "b") for c in ("cat", "dog") for i, s in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)
]  # fmt: skip


def manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_manifests(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, {"a": {"cat": 10, "dog": 10}, "b": {"cat": 10, "dog": 10}})
    file = str(manifest(tmp_path / f"all.{ending}", ROWS))
    domain = opened(root, "the b", manifest=file)
    sizes = {split: domain.class_counts(split).tolist() for split in ("train", "val", "test")}
    assert sizes == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}
    expected = {row["path"] for row in ROWS if row["split"] == "test" and row["domain"] == "the b"}
    assert {domain.path_of(i) for i in domain.split_indices("test").tolist()} == expected
    assert [domain.fault(i) for i in range(20)] == [""] * 20
    assert opened(None, "the b", manifest=file).fingerprint() == domain.fingerprint()  # beside the manifest
    monkeypatch.chdir(tmp_path)
    arguments = ["dataset=image_folder", f"dataset_options.manifest=all.{ending}", "sources=the a,the b", "target="]
    assert resolve(load_config(None, arguments)).dataset_options == {"manifest": file}  # workers run elsewhere
    plain = [{k: v for k, v in row.items() if k != "split"} for row in ROWS]
    drawn = opened(root, "the b", manifest=str(manifest(tmp_path / f"plain.{ending}", plain)))
    assert [drawn.size(split) for split in ("train", "val", "test")] == [16, 2, 2]


def test_numbered_labels_of_a_manifest_are_of_the_classes_option(tmp_path: Path) -> None:
    root = tree(tmp_path, {"a": {"cat": 10, "dog": 10}})
    rows = [{"path": f"a/{c}/000.png", "label": n, "domain": "a"} for c, n in (("cat", "1"), ("dog", "0"))]
    file = str(manifest(tmp_path / "m.csv", rows))
    domain = opened(root, "a", manifest=file, classes=["dog", "cat"])
    assert [(domain.class_names[n], domain.path_of(i)[:5]) for i, n in enumerate(domain.labels)] == [
        ("dog", "a/dog"), ("cat", "a/cat"),
    ]  # fmt: skip
    manifest(tmp_path / "m.csv", [*rows, {"path": "a/cat/001.png", "label": "2", "domain": "a"}])
    with pytest.raises(MalformedDataError, match=r"a label must be a number from 0 to 1 .*, got 2 for `a/cat/001.png`"):
        opened(root, "a", manifest=file, classes=["dog", "cat"])
    manifest(tmp_path / "m.csv", [*rows, {"path": "a/cat/001.png", "label": "dgo", "domain": "a"}])
    with pytest.raises(MalformedDataError, match=r"got `dgo` .* Did you mean `dog`"):
        opened(root, "a", manifest=file, classes=["dog", "cat"])


MANIFEST_ERRORS = {
    "no column": ("path,label\na.png,cat\n", "got `path`, `label` (", "Add `domain`"),
    "empty": ("", "got an empty file", "Add `path` and `label` and `domain`"),
    "empty cell": ("path,label,domain\na.png,,x\n", "must have a `label`, got nothing", "line 2"),
    "wrong split": ("path,label,domain,split\na.png,cat,x,trian\n", "got `trian`", "Did you mean `train`?"),
    "half a split": ("path,label,domain,split\na,b,x,train\nc,d,x,\n", "or none, got domain `x` with both", "line 3"),
    "comma": ("path,label,domain\na,b.png,cat,x\n", "got 4 cells", "in quotes"),
    "quote": ('path,label,domain\n"a.png,cat,x\n', "must be a CSV file", ""),
}


@pytest.mark.parametrize("kind", [*MANIFEST_ERRORS, "missing", "no parquet"])
def test_wrong_manifests(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("m.parquet" if kind == "no parquet" else "m.csv")
    text, *words = MANIFEST_ERRORS.get(kind, ("no", "must be readable" if kind == "missing" else "readable Parquet"))
    if kind != "missing":
        file.write_text(text)
    with pytest.raises(MalformedDataError) as raised:
        open_family("image_folder", {"manifest": str(file)}, tmp_path, 0)
    assert all(word in str(raised.value) for word in words), str(raised.value)
