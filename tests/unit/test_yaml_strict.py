from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from difc_ray.config.yaml_strict import MAX_DEPTH, MAX_VALUES, Dumper, UnreadableError, read_file, read_text, read_value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("1.0e-3", 0.001),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("7", 7),
        ("-0", 0),
        ("1_000", 1000),
        ("0.10", 0.1),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("012", "012"),
        ("0x1f", "0x1f"),
        ("0b11", "0b11"),
        ("0o17", "0o17"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ('"64"', "64"),
        ("[1, a, 1e2]", [1, "a", 100.0]),
        ("{a: {b: off}}", {"a": {"b": "off"}}),
        ("http://host:5000/a#b", "http://host:5000/a#b"),
    ],
)
def test_plain_scalars_are_what_they_look_like(text: str, expected: object) -> None:
    value = read_text(f"k: {text}\n", "t").data["k"]
    assert value == expected
    assert type(value) is type(expected)


def test_infinities_and_nan_are_numbers_for_the_keys_to_refuse() -> None:
    data = read_text("a: .nan\nb: -.inf\nc: .INF\n", "t").data
    assert math.isnan(data["a"])
    assert (data["b"], data["c"]) == (-math.inf, math.inf)


def test_lines_and_source_text_of_values() -> None:
    document = read_text("a: 1\nb:\n  c: [x, 012]\n  d: 'q'\n", "t")
    assert document.lines[("a",)] == 1
    assert document.lines[("b", "c", 1)] == 3
    assert document.lines[("b", "d")] == 4
    assert document.plain[("b", "c", 1)] == "012"
    assert ("b", "d") not in document.plain


@pytest.mark.parametrize(
    ("text", "data", "fragments"),
    [
        ("a: 1\nb: 2\na: 3\n", {"a": 1, "b": 2}, ["key `a` is given twice", "lines 1 and 3"]),
        ("s:\n  lr: 1\n  lr: 2\n", {"s": {"lr": 1}}, ["`lr` is given twice", "lines 2 and 3"]),
        ("on: yes\n", {}, ["config keys must be text", "reads as True", 'Quote it: "on"']),
        ("12: a\n", {}, ["config keys must be text", "`12`", 'Quote it: "12"']),
        ("null: a\n", {}, ["config keys must be text", "reads as None"]),
        ("2024-01-01: a\n", {}, ["config keys must be text"]),
        ("? [a, b]\n: 1\n", {}, ["config keys must be text", "a list or a mapping"]),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", {"x": {"a": 1}, "y": {}}, ["merge keys are not supported"]),
        ('"on": 1\n"12": 2\n', {"on": 1, "12": 2}, []),
        ("2024-13-77: 1\n'-': 2\nyes!: 3\n", {"2024-13-77": 1, "-": 2, "yes!": 3}, []),
    ],
)
def test_keys(text: str, data: dict[str, object], fragments: list[str]) -> None:
    document = read_text(text, "f.yaml")
    said = " ".join(map(str, document.problems))
    assert document.data == data
    assert len(document.problems) == bool(fragments)
    assert all(fragment in said for fragment in fragments), said


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            "x: 1\nc: !!python/object/apply:os.system [ls]\n",
            ["Python tags are not allowed", "!!python/object", "line 2"],
        ),
        ("c: !mine 3\n", ["tags are not allowed", "!mine"]),
        ("c: !!str 3\n", ["tags are not allowed", "!!str"]),
        ("- 1\n- 2\n", ["must be a mapping", "a list"]),
        ("only words\n", ["must be a mapping", "only words"]),
        ("", ["an empty file"]),
        ("# nothing\n---\n", ["an empty file"]),
        ("a: 1\n---\nb: 2\n", ["one YAML document", "line 2"]),
        ("a: [1,\n", ["valid YAML", "line"]),
        ("a:\tb: 1\n", ["valid YAML", "line 1"]),
        ("a: b: c\n", ["valid YAML", "mapping values"]),
        ("a: *nobody\n", ["valid YAML", "undefined alias"]),
        ("a: \x00\n", ["must be printable", "position 3"]),
        ("a: &a [*a]\n", [f"at most {MAX_DEPTH} deep", "alias"]),
        ("a: &a {b: *a}\n", [f"at most {MAX_DEPTH} deep"]),
        ("a: " + "[" * 400_000, [f"at most {MAX_DEPTH} deep"]),
        (BOMB, [f"at most {MAX_VALUES:,} values"]),
        ("a: [" + "1," * 300_000 + "]", [f"at most {MAX_VALUES:,} values"]),
    ],
)
def test_documents_of_which_nothing_can_be_used(text: str, fragments: list[str]) -> None:
    started = time.process_time()
    with pytest.raises(UnreadableError) as caught:
        read_text(text, "f.yaml")
    assert time.process_time() - started < 5
    said = str(caught.value)
    assert all(fragment in said for fragment in fragments), said
    assert "f.yaml" in said
    assert ", got " in said


def test_safe_load_falls_into_the_traps_that_this_module_avoids() -> None:
    """The reason for this module, so that it can go when PyYAML changes."""
    assert yaml.safe_load("lr: 1e-3") == {"lr": "1e-3"}
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}
    assert yaml.safe_load("on: 1") == {True: 1}
    assert yaml.safe_load("seed: 012") == {"seed": 10}
    assert yaml.safe_load("t: 1:30") == {"t": 90}


def test_aliases_below_the_caps_are_written_out() -> None:
    assert read_text("a: &a [1, 2]\nb: {c: *a}\n", "t").data == {"a": [1, 2], "b": {"c": [1, 2]}}


def test_values_of_arguments() -> None:
    assert read_value("[1e-3, on]", "t") == ([0.001, "on"], {(0,): "1e-3", (1,): "on"})
    with pytest.raises(UnreadableError, match="given twice"):
        read_value("{a: 1, a: 2}", "t")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UnreadableError) as caught:
            read_file(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "must exist" in said(tmp_path / "none.yaml")
    assert "a directory" in said(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * 1_000_000)
    assert "at most 1 MB" in said(large)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    assert "0xe9 at position 9" in said(latin)
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert "a device or a pipe" in said(pipe)  # and does not wait for a writer
    if os.geteuid() != 0:
        latin.chmod(0)
        assert "must be readable" in said(latin)
    assert "must be readable" in said(tmp_path / ("x" * 300))  # too long a name: an OSError of any kind


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfsteps: 3\n")
    assert read_file(path).data == {"steps": 3}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
    | st.sampled_from(
        ["1e-3", "012", "0x1f", "on", "off", "1:30", "2024-01-01", "null", "~", "", "<<", "=", "1_0", ".5"]
    )
)


@given(
    st.dictionaries(st.from_regex(r"\A[a-z]{1,6}\Z"), SCALARS | st.lists(SCALARS, max_size=3), min_size=1, max_size=5)
)
@settings(max_examples=200, deadline=None)
def test_what_is_dumped_is_read_back(data: dict[str, object]) -> None:
    text = yaml.dump(data, Dumper=Dumper, allow_unicode=True)
    assert read_text(text, "t").data == data
    assert yaml.safe_load(text) == data  # and by other programs
