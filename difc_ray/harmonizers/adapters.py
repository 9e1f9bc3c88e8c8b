"""Rules of other libraries under a name with a colon: ``torchjd:UPGrad``.

The library, and torch with it, is imported when such a rule is asked for, not before.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, get_args, get_origin

import numpy as np

from difc_ray.errors import ConfigError, NumericError
from difc_ray.harmonizers import solvers
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, State
from difc_ray.registry import did_you_mean

SUFFIX = "Weighting"

NOT_ON_A_GRAM = ("CRMOGM", "Constant", "ExcessMTL", "MoDo", "SDMGrad")
"""Weightings that want something else than the Gram matrix of the rows."""


SAME_IN_TORCHJD = {
    "aligned": "AlignedMTL", "cagrad": "CAGrad", "dualproj": "DualProj", "fairgrad": "FairGrad", "imtl_g": "IMTLG",
    "mgda": "MGDA", "pcgrad": "PCGrad", "upgrad": "UPGrad",
}  # fmt: skip
"""Our name -> TorchJD's name of the same rule."""


@dataclass(frozen=True, kw_only=True)
class TorchJDHarmonizer(Harmonizer):
    """A Gram weighting of TorchJD, called with the float64 Gram.

    Base weights w become the weighting's preference vector where it has one. Otherwise it sees the rows scaled by
    ``w_i / mean(w)``, and its weights are those of the scaled rows: with equal base weights, what the library says.
    Randomness is seeded from the step's generator, and torch's own generator is left as it was.

    Source:
        The TorchJD library (github.com/SimplexLab/TorchJD).
    """

    guarantee = "no"
    cost = "the library's"
    weighting_class: ClassVar[Any]
    """The class of TorchJD."""

    def __post_init__(self) -> None:
        self.weighting(np.ones(1))  # options are checked, and missing extras found, before the first step

    def weighting(self, weights_N: np.ndarray) -> Any:
        """The weighting with these options and base weights.

        Raises:
            ConfigError: an option is out of range, or a part of the library is not installed.
        """
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self._has_preference():
            import torch  # here and not above: rules need numpy only

            options["pref_vector"] = torch.from_numpy(weights_N.copy())
        try:
            return self.weighting_class(**options)
        except ImportError as error:
            raise ConfigError(f"`{self.name}` must have its extra installed. Found: {error}") from None
        except ValueError as error:
            raise ConfigError(f"Options of `{self.name}` must be what TorchJD allows. Found: {error}") from None

    @classmethod
    def _has_preference(cls) -> bool:
        return "pref_vector" in inspect.signature(cls.weighting_class).parameters

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The library's weights.

        Raises:
            NumericError: it fails, or answers with numbers that are not finite.
        """
        import torch

        stats = self.checked(stats)
        scale_N = np.ones(len(stats.weights_N))
        if not self._has_preference() and stats.weights_N.any():
            scale_N = stats.weights_N / stats.weights_N.mean()
        gram_NN = torch.from_numpy(stats.gram_NN * scale_N[:, None] * scale_N)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0 if rng is None else int(rng.integers(2**63)))
            try:
                theirs_N = self.weighting(stats.weights_N)(gram_NN)
            except (ArithmeticError, RuntimeError, ValueError) as error:
                raise NumericError(
                    f"`{self.name}` must answer. Found: {error}, for Gram {stats.gram_NN.tolist()}."
                ) from None
        weights_N = theirs_N.detach().numpy().astype(np.float64) * scale_N
        if not np.isfinite(weights_N).all():
            raise NumericError(
                f"The weights of `{self.name}` must be finite. Found {weights_N.tolist()}, "
                f"for Gram {stats.gram_NN.tolist()}."
            )
        return self.answer(stats, weights_N, state)


@HARMONIZERS.adapter("torchjd")
@cache
def torchjd_rule(name: str) -> type[Harmonizer]:
    """The rule of a TorchJD weighting.

    Args:
        name: name of the weighting, with or without ``Weighting`` at the end.

    Raises:
        ConfigError: TorchJD is not installed, has no such weighting, or the weighting cannot be used on a Gram alone.
    """
    name = name.removesuffix(SUFFIX)
    try:
        library = importlib.import_module("torchjd.aggregation")
    except ImportError:
        raise ConfigError(
            f"`torchjd:{name}` must have the library torchjd installed. Found none. Run `pip install torchjd`."
        ) from None
    known = gram_weightings(library)
    if name not in known:
        why = "It keeps a state of its own, or wants more than a Gram. " if hasattr(library, name + SUFFIX) else ""
        raise ConfigError(f"Unknown harmonizer `torchjd:{name}`. {why}{did_you_mean(name, known)}")
    made = dataclasses.make_dataclass(
        f"TorchJD{name}", _fields(known[name]), bases=(TorchJDHarmonizer,), frozen=True, kw_only=True,
        namespace={
            "__module__": __name__,
            "__doc__": f"``{name}{SUFFIX}`` of TorchJD; see :class:`TorchJDHarmonizer`.",
            "weighting_class": known[name],
            "name": f"torchjd:{name}",
            "summary": f"{name}{SUFFIX} of the TorchJD library",
            "source": "TorchJD (github.com/SimplexLab/TorchJD)",
        },
    )  # fmt: skip
    assert issubclass(made, Harmonizer)
    return made


def gram_weightings(library: ModuleType) -> dict[str, Any]:
    """Name -> class of the weightings that need the Gram only and keep nothing between calls."""
    stateful = importlib.import_module("torchjd").Stateful
    return {
        name.removesuffix(SUFFIX): cls
        for name, cls in sorted(vars(library).items())
        if name.endswith(SUFFIX)
        and name != SUFFIX
        and name.removesuffix(SUFFIX) not in NOT_ON_A_GRAM
        and not issubclass(cls, stateful)
    }


def _fields(cls: type) -> list[tuple[str, Any] | tuple[str, Any, Any]]:
    """The numbers and words among the arguments of a class, as fields of a dataclass."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, parameter in inspect.signature(cls, eval_str=True).parameters.items():
        kind, default = parameter.annotation, parameter.default
        if _is_plain(kind):
            fields.append((name, kind) if default is parameter.empty else (name, kind, default))
    return fields


def _is_plain(kind: Any) -> bool:
    """Whether a type holds numbers, words and None only."""
    if get_origin(kind) is None:
        return kind in (int, float, str, bool, type(None))
    parts = get_args(kind)
    return all(isinstance(part, str | int | float) or _is_plain(part) for part in parts)


def torchjd_weighting(name: str) -> tuple[Any, str]:
    """A weighting of TorchJD with its defaults and a note, or None where it cannot be made.

    Its quadratic programs come with an extra; without it they are solved by ours, after TorchJD's own default
    safeguards: division by the trace (zero below 1e-4), then 1e-4 on the diagonal.
    """
    import torchjd.aggregation as library

    options = {"CAGrad": {"c": 0.5}, "FairGrad": {"alpha": 2.0}}.get(name, {})
    cls = getattr(library, f"{name}Weighting")
    try:
        return cls(**options), ""
    except ImportError:
        if name not in ("DualProj", "UPGrad"):
            return None, ""
        note = "TorchJD's default safeguards (1e-4) with our QP solver: its own is not installed"
        return cls(projector=safeguarded_projector()), note


def safeguarded_projector(norm_eps: float = 1e-4, reg_eps: float = 1e-4) -> Any:
    """A dual-cone projector for TorchJD: its safeguards (0: none), then our exact solver.

    Args:
        norm_eps: a trace below it makes the Gram zero.
        reg_eps: what is added to the diagonal of the Gram after division by the trace.
    """
    import torch
    from torchjd.linalg import DualConeProjector

    class Projector(DualConeProjector):
        """``argmin_{v >= u} vᵀGv`` for every row u of U."""

        def __call__(self, U: Any, G: Any) -> Any:
            gram_NN = G.detach().numpy().astype(np.float64)
            trace = float(np.trace(gram_NN))
            gram_NN = gram_NN / trace if trace >= max(norm_eps, 1e-300) else np.zeros_like(gram_NN)
            gram_NN = gram_NN + reg_eps * np.eye(len(gram_NN))
            bounds_MN = np.atleast_2d(U.detach().numpy().astype(np.float64))
            weights_MN = [solution.weights for solution in solvers.dual_cones(gram_NN, bounds_MN)]
            return torch.from_numpy(np.stack(weights_MN).reshape(tuple(U.shape))).to(G.dtype)

    return Projector()
