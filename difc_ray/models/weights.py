"""Files of initial weights: which are named, whether they are of a model, and how they get into it.

A file holds a state dict, under the names of the library that the network is of (``conv1.weight``, ``fc.bias``), or
under ours (``featurizer.conv1.weight``, ``head.bias``), as a run's ``export/weights.safetensors``. Its head is left out
where it has another size than the model's; everything else must fit.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from difc_ray.errors import ConfigError
from difc_ray.models.base import Model

T = TypeVar("T")

Shape = tuple[int, ...]

SUFFIX = ".safetensors"
HEAD = ("head.weight", "head.bias")
FEATURIZER = "featurizer."
BUFFER = "buffer."
"""What the names of buffers begin with in the weights of a checkpoint."""

SHOWN = 3
"""Tensors of each kind that an error names."""


def check_weights_name(path: Path) -> None:
    """Refuses a path of initial weights that cannot be one.

    Raises:
        ConfigError: it does not end in ``.safetensors``; with what was probably meant.
    """
    value = str(path)
    if value.endswith(SUFFIX):
        return
    near = difflib.get_close_matches(value.lower(), ("none", "imagenet"), n=1)
    remedy = f"Did you mean `weights={near[0]}`?" if near else "Write for example `weights=imagenet`."
    if value.endswith((".pt", ".pth", ".bin", ".ckpt")):
        remedy = (
            "Convert it: `safetensors.torch.save_file(torch.load(PATH, weights_only=True), "
            f"'{path.with_suffix(SUFFIX).name}')`."
        )
    raise ConfigError(f"`weights` must be none, imagenet or the path of a {SUFFIX} file. Found {value!r}. {remedy}")


def read_shapes(path: Path) -> dict[str, Shape]:
    """Name -> shape of what a file holds, from its header.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """

    def shapes() -> dict[str, Shape]:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)

    return _reading(path, shapes)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of what a file holds.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    held: dict[str, Tensor] = _reading(path, lambda: load_file(path))
    return held


def _reading(path: Path, read: Callable[[], T]) -> T:
    """What ``read`` finds in a file, or the sentence on what is wrong with the file."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise ConfigError(f"`weights` must name a {SUFFIX} file. Found {got} (`{path}`). Correct the path.")
    try:
        return read()
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"`weights` must name a readable {SUFFIX} file. Found `{path}`: {error}. Fetch or convert it again."
        ) from None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def our_names(names: Iterable[str], head_name: str) -> dict[str, str]:
    """Name in a file -> name in a :class:`Model`; what one run keeps besides (statistics per domain) is left out.

    >>> our_names(["conv1.weight", "fc.bias"], "fc")
    {'conv1.weight': 'featurizer.conv1.weight', 'fc.bias': 'head.bias'}
    >>> our_names(["featurizer.a", "buffer.featurizer.b", "buffer.photo/featurizer.b", "head.bias"], "fc")
    {'featurizer.a': 'featurizer.a', 'buffer.featurizer.b': 'featurizer.b', 'head.bias': 'head.bias'}
    """
    names = list(names)
    if any(name.startswith(FEATURIZER) for name in names):
        return {name: name.removeprefix(BUFFER) for name in names if "/" not in name}
    prefix = f"{head_name}."
    return {
        name: f"head.{name.removeprefix(prefix)}" if name.startswith(prefix) else f"{FEATURIZER}{name}"
        for name in names
    }


def check_fit(
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    what: str,
    source: Path,
    resizable: Callable[[str, Shape, Shape], bool] = lambda name, found, expected: False,
) -> bool:
    """Whether a file's tensors are a model's.

    Args:
        found: our names -> shapes in the file.
        expected: names -> shapes in the model.
        what: the model, for messages.
        source: the file, for messages.
        resizable: (name, shape in the file, shape in the model) -> whether the tensor can be fitted.

    Returns:
        Whether the head fits too; it may have another size, or be absent.

    Raises:
        ConfigError: any other tensor is missing, too many, or of another shape (counters of batches may be missing:
            older files have none).
    """
    head = all(found.get(name) == expected.get(name) for name in HEAD)
    missing = [n for n in expected if n not in found and n not in HEAD and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in found if n not in expected and n not in HEAD]
    shapes = [
        n for n in found if n in expected and n not in HEAD and found[n] != expected[n]
        and not resizable(n, found[n], expected[n])
    ]  # fmt: skip
    if not missing and not unexpected and not shapes:
        return head

    parts = [
        _listed(len(missing), "missing", [_shown(n) for n in missing]),
        _listed(len(unexpected), "unexpected", [_shown(n) for n in unexpected]),
        _listed(len(shapes), "of another shape", [
            f"{_shown(n)}, {found[n]} in the file and {expected[n]} in the model" for n in shapes
        ]),
    ]  # fmt: skip
    raise ConfigError(
        f"`weights` must hold the tensors of {what}. Found in `{source}`: {', '.join(part for part in parts if part)}. "
        "Name the model that the file is of, or another file."
    )


def _shown(name: str) -> str:
    """A tensor of the featurizer under the name that its library gives it."""
    return f"`{name.removeprefix(FEATURIZER)}`"


def _listed(count: int, kind: str, items: list[str]) -> str:
    """``3 missing (`a`; `b`; ...)``; empty for none."""
    more = "; ..." if count > SHOWN else ""
    return f"{count} {kind} ({'; '.join(items[:SHOWN])}{more})" if count else ""


def copy_into(model: Model, tensors: Mapping[str, Tensor], source: Path, *, head: bool) -> None:
    """Overwrites a model's parameters and buffers with tensors that fit.

    Args:
        model: the model.
        tensors: by our names, in any floating precision.
        source: the file, for messages.
        head: whether the head is overwritten too.

    Raises:
        ConfigError: a tensor holds a NaN or an infinity.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in own and (head or name not in HEAD):
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ConfigError(
                        f"`weights` must hold finite values. Found a NaN or an infinity in `{name}` of `{source}`. "
                        "Fetch or convert the file again."
                    )
                own[name].copy_(tensor)
