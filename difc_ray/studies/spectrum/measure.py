"""What is computed at every checkpoint of a run.

Shape suffixes: S parameters of the scope, P all parameters.

Starts and probes of a domain, or of a pair of them, are the same at all checkpoints: what differs between checkpoints
is the Hessian, not the draw. All of it is a function of the seed, the options and the number of threads, which is
torch's own (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import torch
from torch import Tensor

from difc_ray.config import Config, domain_weights, load_config, resolve
from difc_ray.data import open_domain
from difc_ray.determinism import derive_seed, generator
from difc_ray.errors import CheckpointError, ConfigError, DataError, NumericError
from difc_ray.objectives.curvature import Density, Ritz, lanczos, rademacher, trace
from difc_ray.runs.checkpoint import DamagedCheckpointError, Snapshot, compare_layout, listed, load, newest_valid
from difc_ray.runs.setup import check_run_folder, expected_shapes
from difc_ray.runs.state import train_state
from difc_ray.step.factory import family_of, model_of
from difc_ray.studies.spectrum.options import (
    RELATIVE_DELTA,
    Options,
    check_memory,
    check_options,
    chosen_steps,
    needed_bytes,
)
from difc_ray.studies.spectrum.records import (
    ALL_SOURCES,
    CheckpointSpectrum,
    DomainSpectrum,
    Eigenvalue,
    PairDistance,
    Spectrum,
)
from difc_ray.studies.spectrum.risks import (
    GRAPHS,
    Combined,
    Examples,
    HeadRisk,
    Network,
    NetworkRisk,
    Risk,
    chunk_of,
    difference,
    kept_numbers,
    tell,
)
from difc_ray.studies.spectrum.transfer import TransferBound, bound_beside_gap, rises, unit
from difc_ray.vectors import ParameterLayout

TOLERANCE: Final = 1e-2
"""Residual of ‖H_a − H_b‖₂, as a share of it, at which Lanczos stops: the error of the value is of its square."""

RANDOM: Final = 4
"""Random directions that the gap is measured along."""

RADII: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Radii in units of δ at which bound and gap are compared at the last checkpoint."""


def measure_run(
    run_dir: Path, options: Options, notice: Callable[[str], None], say: Callable[[str], None]
) -> tuple[Config, Spectrum]:
    """Measures the checkpoints of a run.

    Args:
        run_dir: a run's folder.
        options: what is asked.
        notice: where to put what deserves attention.
        say: where to put what is being done.

    Raises:
        CheckpointError: the folder is no run, or has no valid checkpoint, or one of another model.
        ConfigError: the options do not fit, or what is asked does not fit into memory.
        DataError: a domain has no examples in the split.
        NumericError: a product is not finite.
    """
    check_run_folder(run_dir, "RUN_DIR must be a run folder", "command line")
    folders = listed(run_dir / "checkpoints")
    if not folders:
        newest_valid(run_dir / "checkpoints")  # raises, with a sentence
    config = resolve(load_config(run_dir / "config.yaml", [f"resume={run_dir}"]))
    names = domain_names(config, options)
    steps = chosen_steps(options, list(folders))
    options = replace(options, seed=config.seed if options.seed is None else options.seed, domains=names)
    if config.precision != "float32":
        notice(f"the run computed in {config.precision}; here its losses and Hessians are those in {options.precision}")
    examples = [drawn_examples(config, name, options) for name in names]
    valid = valid_checkpoints([folders[step] for step in steps], notice, all_wanted=options.steps is not None)
    survey = SpectrumSurvey(config, options, examples, load(valid[-1]))
    survey.check_memory(psutil.virtual_memory().available)
    moments = []
    for number, folder in enumerate(valid, start=1):
        snapshot = load(folder)  # one at a time: with the optimizer's state it is several times the model
        say(f"step {snapshot.step} ({number}/{len(valid)})")
        moments.append(survey.moment(snapshot, sweep=number == len(valid)))
    result = Spectrum(
        run=str(config.name),
        target=config.target if config.target in names else None,
        parameters=survey.size,
        threads=torch.get_num_threads(),
        options=asdict(survey.options) | {"chunk": survey.chunk},
        moments=moments,
    )
    return config, result


def domain_names(config: Config, options: Options) -> tuple[str, ...]:
    """The domains that are looked at, the target last.

    Raises:
        ConfigError: the options do not fit.
    """
    check_options(options, family_of(config).domain_names())
    target = () if config.target is None else (config.target,)
    names = options.domains or (*config.sources, *target)
    return (*(name for name in names if name not in target), *(name for name in names if name in target))


def drawn_examples(config: Config, name: str, options: Options) -> Examples:
    """The examples of a domain: all of the split, or as many as are asked for, drawn by the seed.

    Raises:
        DataError: there is none.
    """
    domain = open_domain(config.dataset, family_of(config), name)
    indices = domain.split_indices(options.split)
    if len(indices) == 0:
        raise DataError(
            f"every domain must have examples in the split, got none of `{name}` in `{options.split}` (command line). "
            "Write another `--split`, or leave the domain out of `--domains`."
        )
    if len(indices) > options.examples:
        draw = generator(int(options.seed or 0), "spectrum-examples", name)
        indices = np.sort(draw.choice(indices, options.examples, replace=False))
    batch = domain.finished(domain.drawn(indices))
    return Examples(name=name, images=batch.images, labels=batch.labels)


def valid_checkpoints(folders: Sequence[Path], notice: Callable[[str], None], *, all_wanted: bool) -> list[Path]:
    """The folders of checkpoints, without damaged ones unless each was asked for by name.

    Raises:
        CheckpointError: one was, or none is valid.
    """
    found, reasons = [], []
    for folder in folders:
        try:
            load(folder)
            found.append(folder)
        except DamagedCheckpointError as error:
            if all_wanted:
                raise
            reasons.append(f"{folder.name}: {error.reason}")
            notice(f"checkpoint {folder.name} is left out ({error.reason})")
    if not found:
        raise CheckpointError(
            f"at least one checkpoint must be valid, got none (`{folders[0].parent}`: {'; '.join(reasons)}). Restore "
            "one from a backup, or name another run folder."
        )
    return found


class SpectrumSurvey:
    """What is the same at all checkpoints of a run: domains, draws, δ.

    Args:
        config: the run's configuration.
        options: what is asked, with domains and seed filled in.
        examples: of every domain.
        last: the newest checkpoint, which decides δ where it is not given.

    Attributes:
        size: S.
        chunk: examples that are passed through the network at once.
        chunk_bytes: what these and their passes take.
    """

    def __init__(self, config: Config, options: Options, examples: Sequence[Examples], last: Snapshot) -> None:
        self.config, self.examples = config, {each.name: each for each in examples}
        self.model, self.loss = model_of(config)
        self.layout = ParameterLayout.of(self.model)
        compare_layout(last, expected_shapes(self.model, last))
        head = sum(parameter.numel() for parameter in self.model.head.parameters())
        self.size = head if options.scope == "head" else self.layout.size
        delta = options.delta or RELATIVE_DELTA * self._norm(self.layout.flatten(last.named_weights))
        self.options = replace(options, delta=delta)
        first = examples[0].images[:1]
        kept = kept_numbers(self.model, self.loss, first)
        per_example = kept * (8 if options.scope == "head" else GRAPHS * torch.finfo(options.dtype).bits // 8)
        self.chunk = chunk_of(per_example)
        self.chunk_bytes = self.chunk * (8 * first.numel() + per_example)

    def check_memory(self, available_bytes: int) -> None:
        """Refuses what does not fit.

        Raises:
            ConfigError: the vectors, the features of the examples and a chunk of them together do not.
        """
        examples = sum(len(each.labels) for each in self.examples.values())
        width = self.model.head.in_features if self.options.scope == "head" else 0
        needed = needed_bytes(
            self.options, size=self.size, parameters=self.layout.size, features=examples * width,
            chunk_bytes=self.chunk_bytes,
        )  # fmt: skip
        check_memory(self.options, needed, self.size, available_bytes)

    def moment(self, snapshot: Snapshot, *, sweep: bool) -> CheckpointSpectrum:
        """Everything at one checkpoint.

        Args:
            snapshot: the checkpoint.
            sweep: whether bound and gap are compared at other radii too.
        """
        compare_layout(snapshot, expected_shapes(self.model, snapshot))
        state = train_state(snapshot, self.layout)
        loss = tell(self.loss, state.loss, state.step)
        network = Network(self.model, loss, state.model_state(), self.options.dtype)
        make = HeadRisk if self.options.scope == "head" else NetworkRisk
        try:
            risks: dict[str, Risk] = {n: make(network, each, self.chunk) for n, each in self.examples.items()}
            domains = {name: self.domain(name, risk) for name, risk in risks.items()}
            pairs = self.pairs(risks, sweep=sweep)
        except FloatingPointError as error:
            raise NumericError(
                f"products with the Hessian must be finite, got one that is not (checkpoint of step {snapshot.step}). "
                "Write `--precision float64`, or name other `--steps`."
            ) from error
        except (NotImplementedError, RuntimeError) as error:  # torch raises either where a layer has no derivative
            if "derivative" not in str(error):
                raise
            raise ConfigError(
                f"`--scope all` differentiates the model twice, got `{self.config.model}`, of which a layer cannot be: "
                f"{' '.join(str(error).split())[:200]} (command line). Write `--scope head`."
            ) from error
        theta_norm = self._norm(network.theta_P)
        return CheckpointSpectrum(step=snapshot.step, theta_norm=theta_norm, domains=domains, pairs=pairs)

    def domain(self, name: str, risk: Risk) -> DomainSpectrum:
        """Eigenvalues, trace and density of a domain's Hessian; the first start serves all three."""
        options = self.options
        first = lanczos(risk.product, self._start(name, 0), options.lanczos)
        estimate = trace(risk.product, self._probes(name), first)
        runs = [first.ritz()]
        del first
        runs += [
            lanczos(risk.product, self._start(name, number), options.lanczos).ritz()
            for number in range(1, options.probes)
        ]
        best = min(runs, key=lambda run: float(run.residuals_K[-options.top :].max()))
        density = Density.of(runs)
        return DomainSpectrum(
            examples=len(self.examples[name].labels),
            loss=risk.value(),
            gradient_norm=float(risk.gradient().norm()),
            top=_eigenvalues(best)[: -options.top - 1 : -1],
            lowest=_eigenvalues(best)[0],
            trace=estimate.value,
            trace_error=estimate.error,
            nodes=density.nodes_Q.tolist(),
            weights=density.weights_Q.tolist(),
        )

    def pairs(self, risks: Mapping[str, Risk], *, sweep: bool) -> list[PairDistance]:
        """All pairs of domains; first the mean of the sources with the target, or the only source with it."""
        target, main = self.config.target, []
        sources = {name: risk for name, risk in risks.items() if name in self.config.sources}
        if sources and target is not None and target in risks:
            main = [(self._mean(sources), (target, risks[target]))]
        ends = {
            (one, other): (source, opposite)
            for (one, source), (other, opposite) in (*main, *itertools.combinations(risks.items(), 2))
        }
        return [
            self.pair(one, source, other, opposite, sweep=sweep and number == 0)
            for number, ((one, other), (source, opposite)) in enumerate(ends.items())
        ]

    def _mean(self, sources: Mapping[str, Risk]) -> tuple[str, Risk]:
        """The weighted mean of sources with its name; a single one is itself."""
        if len(sources) == 1:
            return next(iter(sources.items()))
        share = dict(zip(self.config.sources, domain_weights(self.config).tolist(), strict=True))
        total = sum(share[name] for name in sources)
        return ALL_SOURCES, Combined(list(sources.values()), [share[name] / total for name in sources])

    def pair(self, one: str, source: Risk, other: str, target: Risk, *, sweep: bool) -> PairDistance:
        """Distances of two domains, the transfer bound, and the gap that was measured beside it."""
        apart = difference(source, target)
        krylov = lanczos(apart.product, self._start(f"{one}/{other}", 0), self.options.lanczos, tolerance=TOLERANCE)
        ritz = krylov.ritz()
        norm, residual = abs(float(ritz.values_K[ritz.extreme])), float(ritz.residuals_K[ritz.extreme])
        gradient_S = apart.gradient()
        directions = {
            "eigenvector": [unit(krylov.vector(ritz.extreme))],
            "gradient": [unit(gradient_S)],
            "random": list(self._directions()),
        }
        iterations = len(krylov.alphas_K)
        del krylov
        gradient = float(gradient_S.norm())

        def beside(factor: float, kinds: Sequence[str]) -> TransferBound:
            delta = factor * float(self.options.delta or 0.0)
            measured = {
                kind: [rises(source, target, unit_S, delta) for unit_S in directions[kind] if unit_S is not None]
                for kind in kinds
            }
            return bound_beside_gap(measured, delta, gradient, norm)

        return PairDistance(
            one=one, other=other, hessian=norm, residual=residual, iterations=iterations, gradient=gradient,
            bound=beside(1.0, tuple(directions)),
            sweep=[beside(factor, ("eigenvector", "gradient")) for factor in RADII] if sweep else [],
        )  # fmt: skip

    def _start(self, whose: str, number: int) -> Tensor:
        seed = derive_seed(int(self.options.seed or 0), "spectrum-start", whose, number)
        return rademacher(1, self.size, seed, self.options.dtype)[0]

    def _probes(self, whose: str) -> Iterator[Tensor]:
        for number in range(self.options.probes):
            seed = derive_seed(int(self.options.seed or 0), "spectrum-probe", whose, number)
            yield rademacher(1, self.size, seed, self.options.dtype)[0]

    def _directions(self) -> Iterator[Tensor | None]:
        for number in range(RANDOM):
            seed = derive_seed(int(self.options.seed or 0), "spectrum-direction", "", number)
            drawn_S = torch.randn(self.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            yield unit(drawn_S)

    def _norm(self, theta_P: Tensor) -> float:
        """Length of the scope's part of θ: the head is the end of it."""
        return float(theta_P[-self.size :].to(torch.float64).norm())


def _eigenvalues(run: Ritz) -> list[Eigenvalue]:
    """Ascending."""
    pairs = zip(run.values_K.tolist(), run.residuals_K.tolist(), strict=True)
    return [Eigenvalue(value=value, residual=residual) for value, residual in pairs]
