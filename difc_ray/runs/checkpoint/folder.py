"""One checkpoint directory: its files, its manifest, and every way in which it can be damaged.

The manifest is written last and lists size and sha256 of the other files, so a directory without one is
incomplete, and one flipped bit is found. Weights and state are safetensors, the rest is JSON and text: nothing
that is read back can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difc_ray.errors import CheckpointError
from difc_ray.files import flush
from difc_ray.runs.checkpoint.snapshot import Snapshot, nonfinite_weight

FORMAT = "difc_ray checkpoint"
SCHEMA = 1
"""Version of the directory's layout; raised when an older difc_ray could not read it any more."""

WEIGHTS, STATE, META, CONFIG, MANIFEST = (
    "weights.safetensors",
    "state.safetensors",
    "state.json",
    "config.yaml",
    "manifest.json",
)
FILES = (WEIGHTS, STATE, META, CONFIG)
"""What the manifest lists; nothing else in the directory is ever opened."""

_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"a checkpoint must be whole, got this damage: {reason} (`{path}`). "
            "Use another checkpoint of the run; `resume=auto` skips damaged ones."
        )
        self.reason = reason
        """What is wrong with it, as the end of a sentence."""


# ---------------------------------------------------------------------------------------------------- writing


def write_folder(folder: Path, snapshot: Snapshot) -> None:
    """Fills an empty directory with the files of a checkpoint, each on the disk before the next begins.

    Raises:
        OSError, SafetensorError: the disk does not take it.
    """
    save_file(_own_memory(snapshot.named_weights), folder / WEIGHTS, metadata={"format": "pt"})
    save_file(_own_memory(snapshot.tensors), folder / STATE, metadata={"format": "pt"})
    (folder / META).write_text(json.dumps(snapshot.meta, indent=1) + "\n", encoding="utf-8")
    (folder / CONFIG).write_text(snapshot.config_yaml, encoding="utf-8")
    for name in FILES:
        flush(folder / name)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in FILES}
    manifest = {"format": FORMAT, "schema": SCHEMA, "step": snapshot.step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)


def size_on_disk(snapshot: Snapshot) -> int:
    """Bytes that the checkpoint needs, generously: tensors, text, headers, and a block per file."""
    tensors = [*snapshot.named_weights.items(), *snapshot.tensors.items()]
    payload = sum(tensor.nbytes + 200 + len(name) for name, tensor in tensors)
    return payload + len(snapshot.config_yaml) + len(json.dumps(snapshot.meta, indent=1)) + 16_384


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors wants them: on the CPU, contiguous, no two names for the same memory."""
    taken: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.numel() and plain.data_ptr() in taken:
            plain = plain.clone()
        taken.add(plain.data_ptr())
        out[name] = plain
    return out


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- reading


def read_folder(folder: Path) -> Snapshot:
    """The content of a checkpoint directory, after every check.

    Raises:
        DamagedCheckpointError: with its own reason for each kind of damage.
    """
    manifest = _manifest(folder)
    _verify(folder, manifest)
    try:
        meta = json.loads((folder / META).read_text("utf-8"))
        config_yaml = (folder / CONFIG).read_text("utf-8")
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(folder, f"its text files cannot be read ({error})") from error
    if not isinstance(meta, dict) or type(meta.get("step")) is not int or meta["step"] < 0:
        raise DamagedCheckpointError(folder, f"`{META}` names no step")
    if meta["step"] != manifest.get("step"):
        raise DamagedCheckpointError(folder, f"`{MANIFEST}` and `{META}` name different steps")
    snapshot = Snapshot(_tensors(folder, WEIGHTS), _tensors(folder, STATE), meta, config_yaml)
    if name := nonfinite_weight(snapshot.named_weights):
        raise DamagedCheckpointError(folder, f"step {snapshot.step} contains non-finite values in `{name}`")
    return snapshot


def _manifest(folder: Path) -> dict[str, Any]:
    """The parsed manifest of this format and a schema that we know."""
    _check_is_checkpoint_folder(folder)
    _check_no_pickle(folder, MANIFEST)
    content = (folder / MANIFEST).read_bytes()
    if not content:
        raise DamagedCheckpointError(folder, f"`{MANIFEST}` is empty")
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(folder, f"`{MANIFEST}` is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedCheckpointError(folder, "it is not a difc_ray checkpoint (its manifest is of something else)")
    schema = manifest.get("schema")
    if type(schema) is not int or schema < 1:
        raise DamagedCheckpointError(folder, f"`{MANIFEST}` has no valid schema version (found {schema!r})")
    if schema > SCHEMA:
        raise DamagedCheckpointError(
            folder, f"it has schema version {schema}, newer than {SCHEMA}, which this difc_ray reads (upgrade it)"
        )
    return manifest


def _check_is_checkpoint_folder(folder: Path) -> None:
    """There is a directory with a manifest."""
    if not folder.exists():
        raise DamagedCheckpointError(folder, "it does not exist")
    if not folder.is_dir():
        pickled = folder.suffix in _PICKLE_SUFFIXES or _is_pickle(folder)
        kind = "not a difc_ray checkpoint (contains Python objects)" if pickled else "a file, not a directory"
        raise DamagedCheckpointError(folder, f"it is {kind}")
    if (folder / MANIFEST).is_file():
        return
    entries = sorted(entry.name for entry in folder.iterdir())
    inner = [name for name in entries if name.startswith("step-")]
    pickles = [name for name in entries if name.endswith(_PICKLE_SUFFIXES)]
    if not entries:
        reason = "the directory is empty"
    elif inner:
        reason = f"it is a folder of checkpoints, not one of them (it has {', '.join(inner[:3])})"
    elif pickles:
        reason = f"it is not a difc_ray checkpoint (contains Python objects: {', '.join(pickles[:3])})"
    elif set(entries) & set(FILES):
        reason = f"`{MANIFEST}` is missing, so it was not written to the end"
    else:
        reason = f"it is not a difc_ray checkpoint (no `{MANIFEST}` among its files)"
    raise DamagedCheckpointError(folder, reason)


def _verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Presence, size and sha256 of every file."""
    listed = manifest.get("files")
    for name in FILES:
        entry = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
            raise DamagedCheckpointError(folder, f"`{MANIFEST}` does not list `{name}`")
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(folder, f"`{name}` is missing")
        size, expected = path.stat().st_size, entry["bytes"]
        if size == 0 and expected != 0:
            raise DamagedCheckpointError(folder, f"`{name}` is empty")
        _check_no_pickle(folder, name)
        if size < expected:
            raise DamagedCheckpointError(folder, f"`{name}` is truncated ({size} of {expected} bytes)")
        if size > expected:
            raise DamagedCheckpointError(folder, f"`{name}` has {size} bytes instead of {expected}")
        if sha256(path) != entry.get("sha256"):
            raise DamagedCheckpointError(folder, f"`{name}` was changed after it was written (sha256 mismatch)")


def _check_no_pickle(folder: Path, name: str) -> None:
    """Refuses a file that looks like pickle, or like the zip archive that torch.save makes of it."""
    if _is_pickle(folder / name):
        raise DamagedCheckpointError(folder, f"it is not a difc_ray checkpoint (`{name}` contains Python objects)")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors header may begin with the same two bytes (they are its length), but has `{` in byte 8.
    pickled = len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[8:9] != b"{"
    return pickled or head.startswith(b"PK\x03\x04")


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own (the library maps the file, which may be replaced later)."""
    try:
        return {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedCheckpointError(folder, f"`{name}` is not a safetensors file ({error})") from error
