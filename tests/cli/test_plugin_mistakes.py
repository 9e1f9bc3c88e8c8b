"""What goes wrong in a first plug-in: one sentence that names dataset and domain, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import user_module
from tests.cli.shell import Cli, assert_sentences

SETTINGS = (*user_module.SETTINGS, "engine=inline", "tracking.mode=off")

LABELS = 'super().__init__(name, ("dark", "light"), (1, 4, 4), np.arange(200) % 2, seed)'
IMAGES = "return noise[indices] + signal[:, None, None, None]"

MISTAKES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "labels from 1": ("np.arange(200) % 2, seed", "np.arange(200) % 2 + 1, seed", ("0 to 1", "got 2 among them")),
    "labels as halves": ("np.arange(200) % 2, seed", "np.full(200, 0.5), seed", ("0 to 1", "got 0.5 among them")),
    "labels in columns": ("np.arange(200) % 2, seed", "np.eye(200, 2), seed", ("got an array of float64", "(200, 2)")),
    "base class forgotten": (LABELS, "self.labels = np.arange(200) % 2", ("`Squares.__init__`", "super().__init__(")),
    "images as bytes": (IMAGES, "return noise[indices].astype(np.uint8)", ("float32", "an array of uint8")),
    "channels last": (IMAGES, "return noise[indices].transpose(0, 2, 3, 1)", ("here (2, 1, 4, 4)", "(2, 4, 4, 1)")),
    "a tensor": (IMAGES, "import torch; return torch.from_numpy(noise[indices])", ("`images_at`", "a Tensor")),
    "method forgotten": ("def images_at", "def image_at", ("all methods", "abstract method", "images_at")),
    "another shape": ("image_shape = (1, 4, 4)", "image_shape = (1, 8, 8)", ("`image_shape`", "(1, 8, 8), got (1, 4")),
    "nothing returned": ("return Squares(", "Squares(", ("`load` of `SquaresFamily`", "`NoneType`")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_domain(mistake: str, cli: Cli, tmp_path: Path) -> None:
    right, wrong, words = MISTAKES[mistake]
    assert right in user_module.TEXT
    (tmp_path / "squares.py").write_text(user_module.TEXT.replace(right, wrong))
    answer = cli("train", *SETTINGS)
    assert answer.code == 3, answer.err
    for line in answer.errors:
        assert "(dataset `squares`, domain `" in line
    lines = len(answer.errors)
    assert_sentences(answer, *[words] * lines)
    assert not (tmp_path / "runs").exists()


FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "method forgotten": ("def domain_names", "def names", ("all methods", "`SquaresFamily` without `domain_names`")),
    "no classes": ('    class_names = ("dark", "light")\n', "", ("`class_names` of `SquaresFamily`", "got ()")),
    "flat images": ("image_shape = (1, 4, 4)", "image_shape = (16,)", ("(channels, height, width)", "got (16,)")),
    "base class forgotten": (
        "    def domain_names", "    def __init__(self, *a): pass\n    def domain_names",
        ("must call that of its base class", "super().__init__(options, root, seed)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FAMILIES)
def test_a_family(mistake: str, cli: Cli, tmp_path: Path) -> None:
    right, wrong, words = FAMILIES[mistake]
    assert right in user_module.TEXT
    (tmp_path / "squares.py").write_text(user_module.TEXT.replace(right, wrong))
    answer = cli("train", *SETTINGS)
    assert answer.code == 3, answer.err
    assert_sentences(answer, ("(dataset `squares`)", *words))


def test_a_description_may_be_left_out(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "squares.py").write_text(user_module.TEXT.replace("    description =", "    whatever ="))
    answer = cli("domains", "plugins=squares", "dataset=squares", "sources=plain", "target=far",
                 "alignment.alpha=0", "alignment.beta=0", "harmonize.rule=mean", "model=flat")  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    assert "100 each" in answer.out


def test_domains_that_nobody_named(cli: Cli, tmp_path: Path) -> None:
    """The defaults are of another dataset: that is one thing to do, and one sentence."""
    (tmp_path / "squares.py").write_text(user_module.TEXT)
    answer = cli("train", "plugins=squares", "dataset=squares", "model=flat")
    assert answer.code == 2
    assert_sentences(
        answer,
        (
            "`sources` and `target` must name domains of dataset `squares`, got `mnist`, `optdigits`",
            "(default). Name `sources` and `target` of `squares`: it has plain, bright@1 é, far.",
        ),
    )
