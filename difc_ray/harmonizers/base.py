"""What a harmonizer is: a pure function from the Gram matrix of the rows to their weights.

Shape suffixes: N rows.

A rule is a frozen dataclass whose fields are its options, with the pair ``init(n) -> state`` and
``update(stats, state, rng) -> Harmonization``. State is a dict of arrays that the caller keeps (and writes
into the checkpoint); randomness comes only from ``rng``. So a rule gives the same bits wherever it runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, cast, final

import numpy as np
import numpy.typing as npt

from difc_ray.errors import CheckpointError, ConfigError
from difc_ray.harmonizers import metrics
from difc_ray.harmonizers.checking import check_gram, check_vector
from difc_ray.registry import Registry

Guarantee = Literal["proven", "n = 2 only", "no"]
"""Whether ``direction · row_k >= 0`` for every k is proven, proven for two rows, or not promised."""

Claim = Literal["scale", "permutation", "linear", "base"]
"""A property that a rule states of itself, and that the tests hold it to.

``scale``: one factor on all rows leaves the weights alone; ``permutation``: rows in another order get the same
direction; ``linear``: the direction is linear in positive factors on the single rows; ``base``: the base weights come
back when no two rows conflict.
"""

State = dict[str, np.ndarray]
"""The memory of a rule between steps: arrays by name, empty for rules without any."""


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
    """Base of every rule. Subclasses are frozen dataclasses: fields (with a type) are options, the rest describes.

    A rule acts on the scaled rows ``w_i * row_i`` with the base weights w: it finds multipliers tau for the
    Gram ``diag(w) gram diag(w)`` and answers ``w * tau``. With ``w = (1, 1)`` that is tau itself.
    """

    name: ClassVar[str]
    """The name in the registry."""
    two_rows: ClassVar[bool] = False
    """True when the rule is defined for exactly two rows (row 1 alignment, row 2 classification)."""
    summary: ClassVar[str]
    """One line for tables and ``--help``."""
    guarantee: ClassVar[Guarantee]
    """What is known about ``direction · row_k >= 0``."""
    source: ClassVar[str]
    """Paper and equation."""
    cost: ClassVar[str] = "n^2"
    """Order of the arithmetic for n rows; reading the Gram alone is n^2."""
    claims: ClassVar[frozenset[Claim]] = frozenset()
    """What else is true of the rule, with its default options."""
    needs_metric: ClassVar[bool] = False
    """True when the rows are ``[g_1 … g_K, M g_1 … M g_K]`` and there are K base weights."""
    needs_losses: ClassVar[bool] = False
    """True when the rule looks at one loss per row."""

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
            ConfigError: shapes, row count, base weights or losses do not fit the rule.
            NumericError: the matrix is not a finite Gram matrix.
        """
        gram_NN = check_gram(stats.gram_NN)
        n = len(gram_NN)
        if self.two_rows and n != 2:
            raise ConfigError(
                f"`{self.name}` is defined for two rows only. Found {n} rows. "
                "Harmonize between tasks (alignment and classification), or choose a rule for more rows, as `mean`."
            )
        if self.needs_metric and n % 2:
            raise ConfigError(
                f"The rows of `{self.name}` must be K gradients g and then K rows M g, an even number. Found {n} rows."
            )
        weights_N = check_vector(stats.weights_N, n // 2 if self.needs_metric else n, "base weights")
        if (weights_N < 0.0).any():
            raise ConfigError(f"Base weights must not be negative. Found {weights_N.tolist()}. Flip the row instead.")
        losses_N = None if stats.losses_N is None else check_vector(stats.losses_N, n, "losses")
        if self.needs_losses and losses_N is None:
            raise ConfigError(
                f"`{self.name}` must be given the loss behind every row. Found none. "
                "Pass `losses=`; in training, rows that are domains have one each (`harmonize.between=domains`)."
            )
        return GramStatistics(gram_NN=gram_NN, weights_N=weights_N, losses_N=losses_N)

    def answer(
        self, stats: GramStatistics, weights_N: np.ndarray, state: State, diagnostics: Mapping[str, float] | None = None
    ) -> Harmonization:
        """The weights with the conflict metrics of the rows before and after, and what the rule adds."""
        common = metrics.conflict_metrics(stats.gram_NN, weights_N, stats.weights_N)
        return Harmonization(weights=weights_N, state=state, diagnostics=common | dict(diagnostics or {}))


class Multipliers(NamedTuple):
    """What a :class:`ScaledHarmonizer` finds for its scaled rows."""

    tau_N: np.ndarray
    """(N,) float64: ``direction = Σ tau_i (w_i row_i)``."""
    diagnostics: Mapping[str, float] = MappingProxyType({})
    """What the rule has to say about itself."""


@dataclass(frozen=True, kw_only=True)
class ScaledHarmonizer(Harmonizer):
    """Base of the rules that see the scaled rows ``w_i row_i`` only: base weights are a scaling of the rows.

    A row with base weight 0 takes no part.
    """

    @abstractmethod
    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """Multipliers tau of the scaled rows, from their Gram matrix (at least one row)."""

    @final
    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """``base weights * tau``, with the rule's own diagnostics beside the common ones."""
        stats = self.checked(stats)
        gram_NN, used_N = scaled_gram(stats), stats.weights_N > 0.0
        if used_N.all():
            answer = self.multipliers(gram_NN, rng)
            return self.answer(stats, stats.weights_N * answer.tau_N, state, answer.diagnostics)
        weights_N, diagnostics = np.zeros(len(used_N)), {}
        if used_N.any():
            answer = self.multipliers(gram_NN[used_N][:, used_N], rng)
            weights_N[used_N], diagnostics = stats.weights_N[used_N] * answer.tau_N, dict(answer.diagnostics)
        return self.answer(stats, weights_N, state, diagnostics)


HARMONIZERS: Registry[type[Harmonizer]] = Registry("harmonizer")
"""All rules by name."""


def scaled_gram(stats: GramStatistics) -> npt.NDArray[np.float64]:
    """Gram matrix of the scaled rows, ``diag(w) gram diag(w)``."""
    return cast(npt.NDArray[np.float64], stats.gram_NN * stats.weights_N[:, None] * stats.weights_N[None, :])


def check_number(rule: str, option: str, value: float, low: float, high: float) -> None:
    """An option must lie in [low, high] (a NaN lies nowhere); for ``__post_init__`` of the rules.

    Raises:
        ConfigError: it is not.
    """
    if not low <= value <= high:
        bounds = f"a number in [{low:g}, {high:g}]" if math.isfinite(high) else f"a number of at least {low:g}"
        raise ConfigError(f"`{option}` of `{rule}` must be {bounds}. Found `{option} = {value!r}`.")


def check_memory(rule: str, name: str, numbers: np.ndarray, n: int) -> np.ndarray:
    """What a rule remembers of every row, as it is; for the ``update`` of the rules.

    Raises:
        CheckpointError: it is of another number of rows.
    """
    if numbers.shape != (n,):
        raise CheckpointError(
            f"The state of `{rule}` must have one number in `{name}` per row ({n}). Found {numbers.size}. "
            "Start a new run after changing the rows."
        )
    return numbers


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
    from difc_ray.options import make_options  # here: it brings pydantic, and `from difc_ray import harmonize` is quick

    return make_options(HARMONIZERS.get(rule), options, f"harmonizer `{rule}`")


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
    gram_NN, eps = _as_float64(gram, "gram"), _rounding_of(gram)
    n = len(gram_NN) if gram_NN.ndim == 2 else 0
    stats = GramStatistics(
        gram_NN=check_gram(gram_NN, eps),
        weights_N=harmonizer.default_weights(n) if weights is None else _as_float64(weights, "weights"),
        losses_N=None if losses is None else _as_float64(losses, "losses"),
    )
    return harmonizer.update(stats, harmonizer.init(n) if state is None else state, rng)


def _as_float64(values: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    """An array of real numbers as float64; a tensor may belong to a graph, and lie anywhere."""
    try:
        given: Any = values
        if hasattr(given, "detach"):  # of torch, which is not imported for this
            given = given.detach().to("cpu")
            given = given.to_dense() if given.is_sparse else given
            given = (given if given.is_complex() else given.double()).numpy()
        array = np.asarray(given)
        if np.iscomplexobj(array):
            raise ValueError("complex numbers")
        return np.array(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"`{what}` must be an array of real numbers. Found: {error}.") from error


_EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def _rounding_of(values: Any) -> float:
    """Rounding of the type in which numbers come, relative to them; 0 for float64 and what is exact."""
    return _EPS.get(str(getattr(values, "dtype", "")).rpartition(".")[2], 0.0)
