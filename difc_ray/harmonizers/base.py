"""What a harmonizer is: a pure function from the Gram matrix of the rows to their weights.

Shape suffixes: N rows.

A rule is a frozen dataclass whose fields are its options, with the pair ``init(n) -> state`` and
``update(stats, state, rng) -> Harmonization``. State is a dict of arrays that the caller keeps (and writes
into the checkpoint); randomness comes only from ``rng``. So a rule gives the same bits wherever it runs.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, cast, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from difc_ray.errors import ConfigError, NumericError
from difc_ray.harmonizers import metrics
from difc_ray.registry import Registry, did_you_mean

Guarantee = Literal["proven", "n = 2 only", "no"]
"""Whether ``direction · row_k >= 0`` for every k is proven, proven for two rows, or not promised."""

State = dict[str, np.ndarray]
"""The memory of a rule between steps: arrays by name, empty for rules without any."""

SYMMETRY_TOLERANCE = 1e-8
"""Largest difference between a Gram entry and its mirror image, relative to the largest entry."""

_DIAGONAL_TOLERANCE = 1e-10
"""A squared length may be this far below zero, relative to the largest: rows that cancel leave rounding."""

_CAUCHY_SCHWARZ_TOLERANCE = 1e-6
"""How far an inner product may exceed the product of the lengths; leaves room for float32 Grams."""


@dataclass(frozen=True, kw_only=True)
class Harmonization:
    """The answer of a rule to one Gram matrix."""

    weights: np.ndarray
    """(N,) float64: ``direction = sum_i weights[i] * row_i``."""
    state: State
    """The rule's next state, to be passed to the next ``update``."""
    diagnostics: dict[str, float]
    """Conflict metrics before and after, and what the rule has to say about itself."""


@dataclass(frozen=True, kw_only=True)
class GramStatistics:
    """All that a rule may know about the rows of one step."""

    gram_NN: np.ndarray
    """(N, N) float64 inner products of the rows; symmetric, positive semidefinite."""
    weights_N: np.ndarray
    """(N,) float64 base weights, >= 0: what the rule returns when nothing conflicts."""
    losses_N: np.ndarray | None = None
    """(N,) float64 loss values behind the rows, for rules that look at them."""


@dataclass(frozen=True, kw_only=True)
class Harmonizer(ABC):
    """Base of every rule. Subclasses are frozen dataclasses whose fields are the options.

    A rule acts on the scaled rows ``w_i * row_i`` with the base weights w: it finds multipliers tau for the
    Gram ``diag(w) gram diag(w)`` and answers ``w * tau``. With ``w = (1, 1)`` that is tau itself.
    """

    name: ClassVar[str]
    """The name in the registry."""
    two_rows: ClassVar[bool]
    """True when the rule is defined for exactly two rows (row 1 alignment, row 2 classification)."""
    summary: ClassVar[str]
    """One line for tables and ``--help``."""
    guarantee: ClassVar[Guarantee]
    """What is known about ``direction · row_k >= 0``."""
    source: ClassVar[str]
    """Paper and equation."""

    def default_weights(self, n: int) -> npt.NDArray[np.float64]:
        """Base weights when the caller gives none: ones for a two-row rule, the mean 1/n for all others."""
        return np.ones(n) if self.two_rows else np.full(n, 1.0 / n)

    def init(self, n: int) -> State:
        """The state before the first step, for ``n`` rows. Rules without memory keep this empty one."""
        return {}

    @abstractmethod
    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """Weights for one step.

        Args:
            stats: Gram matrix, base weights and losses of the rows.
            state: what ``init`` or the previous ``update`` returned.
            rng: the only source of randomness; rules that draw nothing ignore it.

        Raises:
            ConfigError: shapes, row count or base weights do not fit the rule.
            NumericError: the matrix is not a finite Gram matrix.
        """

    def checked(self, stats: GramStatistics) -> GramStatistics:
        """The statistics, validated, with an exactly symmetric Gram; every ``update`` begins with this.

        Raises:
            ConfigError: shapes, row count or base weights do not fit the rule.
            NumericError: the matrix is not a finite Gram matrix.
        """
        gram_NN = check_gram(stats.gram_NN)
        n = len(gram_NN)
        if self.two_rows and n != 2:
            raise ConfigError(
                f"`{self.name}` is defined for two rows only. Found {n} rows. "
                "Harmonize between tasks (alignment and classification), or choose a rule for more rows, as `mean`."
            )
        weights_N = _check_vector(stats.weights_N, n, "base weights")
        if (weights_N < 0.0).any():
            raise ConfigError(f"Base weights must not be negative. Found {weights_N.tolist()}. Flip the row instead.")
        losses_N = None if stats.losses_N is None else _check_vector(stats.losses_N, n, "losses")
        return GramStatistics(gram_NN=gram_NN, weights_N=weights_N, losses_N=losses_N)


HARMONIZERS: Registry[type[Harmonizer]] = Registry("harmonizer")
"""All rules by name."""


def scaled_gram(stats: GramStatistics) -> npt.NDArray[np.float64]:
    """Gram matrix of the scaled rows, ``diag(w) gram diag(w)``."""
    return cast(npt.NDArray[np.float64], stats.gram_NN * stats.weights_N[:, None] * stats.weights_N[None, :])


def _check_vector(vector_N: np.ndarray, n: int, what: str) -> npt.NDArray[np.float64]:
    """A finite float64 vector with one entry per row."""
    if vector_N.shape != (n,):
        raise ConfigError(f"There must be one entry in `{what}` per row. Found shape {vector_N.shape} for {n} rows.")
    if not np.isfinite(vector_N).all():
        raise NumericError(f"`{what}` must be finite. Found {vector_N.tolist()}.")
    return vector_N.astype(np.float64)


def check_gram(gram_NN: np.ndarray) -> npt.NDArray[np.float64]:
    """Validates a Gram matrix and makes it exactly symmetric with a diagonal >= 0.

    Args:
        gram_NN: (N, N) real matrix, N >= 1.

    Returns:
        (N, N) float64. An exactly symmetric matrix with a diagonal >= 0 comes back bit for bit.

    Raises:
        ConfigError: not a square matrix of at least one row.
        NumericError: not finite, not symmetric to 1e-8 of its largest entry, a negative squared length, or an
            inner product that the lengths do not allow.
    """
    if gram_NN.ndim != 2 or gram_NN.shape[0] != gram_NN.shape[1] or gram_NN.shape[0] < 1:
        raise ConfigError(
            f"A Gram matrix must be square, with one row and one column per gradient. Found shape {gram_NN.shape}. "
            "Pass the inner products `rows @ rows.T`, not the rows."
        )
    gram_NN = gram_NN.astype(np.float64)
    if not np.isfinite(gram_NN).all():
        i, j = (int(k) for k in np.argwhere(~np.isfinite(gram_NN))[0])
        raise NumericError(
            f"A Gram matrix must be finite. Found {gram_NN[i, j]} at ({i}, {j}). "
            "Row 0 is the first gradient: look for overflow or NaN in it before harmonizing."
        )
    largest = float(np.abs(gram_NN).max())
    skew = float(np.abs(gram_NN / 2 - gram_NN.T / 2).max()) * 2
    if skew > SYMMETRY_TOLERANCE * largest:
        raise NumericError(
            f"A Gram matrix must be symmetric (to {SYMMETRY_TOLERANCE:g} of its largest entry). "
            f"Found a difference of {skew:g} at a largest entry of {largest:g}. "
            "Pass `(gram + gram.T) / 2` if that is meant."
        )
    gram_NN = gram_NN if skew == 0.0 else gram_NN / 2 + gram_NN.T / 2
    _check_lengths(gram_NN, largest)
    np.fill_diagonal(gram_NN, np.maximum(np.diagonal(gram_NN), 0.0))
    return gram_NN


def _check_lengths(gram_NN: npt.NDArray[np.float64], largest: float) -> None:
    """Squared lengths >= 0 and Cauchy-Schwarz for every pair, up to rounding."""
    squares_N = np.diagonal(gram_NN)
    i = int(squares_N.argmin())
    if squares_N[i] < -_DIAGONAL_TOLERANCE * largest:
        raise NumericError(
            f"The diagonal of a Gram matrix holds squared lengths, which are not negative. "
            f"Found {squares_N[i]:g} at ({i}, {i}). Pass inner products of the rows, not another similarity."
        )
    lengths_N = metrics.lengths(gram_NN) + metrics.ZERO_LENGTH
    excess_NN = np.abs(gram_NN) - lengths_N[:, None] * lengths_N[None, :]
    if (excess_NN > _CAUCHY_SCHWARZ_TOLERANCE * largest).any():
        i, j = (int(k) for k in np.unravel_index(int(excess_NN.argmax()), excess_NN.shape))
        raise NumericError(
            f"An inner product must not exceed the product of the lengths. Found {gram_NN[i, j]:g} at ({i}, {j}) "
            f"for lengths {lengths_N[i]:g} and {lengths_N[j]:g}. The matrix is not `rows @ rows.T` for any rows."
        )


def check_number(rule: str, option: str, value: float, low: float, high: float) -> None:
    """An option must lie in [low, high] (a NaN lies nowhere); for ``__post_init__`` of the rules.

    Raises:
        ConfigError: it is not.
    """
    if not low <= value <= high:
        bounds = f"a number in [{low:g}, {high:g}]" if math.isfinite(high) else f"a number of at least {low:g}"
        raise ConfigError(f"`{option}` of `{rule}` must be {bounds}. Found `{option} = {value!r}`.")


def make_harmonizer(rule: str, options: Mapping[str, Any]) -> Harmonizer:
    """The rule of that name with the given options.

    Args:
        rule: a name in :data:`HARMONIZERS`.
        options: field name -> value; fields that are missing keep their default.

    Raises:
        ConfigError: unknown rule or option, or a value out of range.

    >>> make_harmonizer("ghpp", {"lam": 0.25}).lam
    0.25
    """
    cls = HARMONIZERS.get(rule)
    known = _option_types(cls)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) if known else "It has no options."
            raise ConfigError(f"Unknown option `{option}` of harmonizer `{rule}`. {hint}")
    return cls(**{option: _typed(rule, option, value, known[option]) for option, value in options.items()})


@cache
def _option_types(cls: type[Harmonizer]) -> dict[str, Any]:
    """Option -> the pydantic ``TypeAdapter`` of its field's annotation."""
    hints = get_type_hints(cls)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(cls)}


def _typed(rule: str, option: str, value: Any, kind: Any) -> Any:
    """The value as the type of its field: integers become float where the field is one; nothing else changes type."""
    try:
        return kind.validate_python(tuple(value) if isinstance(value, list) else value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(
            f"`{option}` of `{rule}` is of the wrong type: {reason}. Found `{option} = {value!r}`."
        ) from None


def harmonize(
    gram: npt.ArrayLike,
    rule: str = "gh",
    *,
    weights: npt.ArrayLike | None = None,
    losses: npt.ArrayLike | None = None,
    state: State | None = None,
    rng: np.random.Generator | None = None,
    **options: Any,
) -> Harmonization:
    """Weights for gradients that may conflict, from their inner products alone.

    Args:
        gram: (n, n) inner products ``rows @ rows.T``, symmetric and positive semidefinite, float64 advised.
        rule: a name in :data:`HARMONIZERS`.
        weights: (n,) base weights >= 0, what the rule returns when nothing conflicts. Default: the rule's own
            (ones for the two-row rules, 1/n for the others).
        losses: (n,) loss values, for the rules that look at them.
        state: the ``state`` of the previous call, for rules with a memory. Default: a fresh one.
        rng: source of randomness, for rules that draw.
        **options: the rule's options, such as ``lam`` of ``ghpp``.

    Returns:
        Weights (n,) so that ``direction = weights @ rows``, next state, and diagnostics.

    Raises:
        ConfigError: unknown rule or option, or shapes that do not fit.
        NumericError: the matrix is not a finite Gram matrix.

    >>> harmonize([[1.0, -0.5], [-0.5, 1.0]], "gh").weights.tolist()
    [1.5, 1.5]
    """
    harmonizer = make_harmonizer(rule, options)
    gram_NN = _as_float64(gram, "gram")
    n = len(gram_NN) if gram_NN.ndim == 2 else 0
    stats = GramStatistics(
        gram_NN=check_gram(gram_NN),
        weights_N=harmonizer.default_weights(n) if weights is None else _as_float64(weights, "weights"),
        losses_N=None if losses is None else _as_float64(losses, "losses"),
    )
    return harmonizer.update(stats, harmonizer.init(n) if state is None else state, rng)


def _as_float64(values: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    """An array of real numbers as float64."""
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array):
            raise ValueError("complex numbers")
        return np.array(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`{what}` must be an array of real numbers. Found: {error}.") from error
