"""Which pairs of domains are compared, which of them is the main one, and the table of the domains."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from difc_ray.cli.spectrum import domain_table
from difc_ray.studies.spectrum.measure import SpectrumSurvey
from difc_ray.studies.spectrum.options import Options
from difc_ray.studies.spectrum.records import CheckpointSpectrum, DomainSpectrum, Eigenvalue, PairDistance, Spectrum
from difc_ray.studies.spectrum.risks import Risk
from tests.runs import small_config
from tests.unit.test_spectrum import Quadratic, quadratics

NAMES = ("mnist", "optdigits", "fonts", "mnistm")
QUADRATICS: dict[str, Quadratic] = dict(
    zip(NAMES, (*quadratics(1, stationary=False), *quadratics(2, stationary=False)), strict=True)
)


def compared(
    names: Sequence[str], sources: Sequence[str], target: str | None, weights: list[float] | None = None
) -> list[PairDistance]:
    """The pairs of some domains with quadratic losses, of a run with these sources and this target."""
    survey = object.__new__(SpectrumSurvey)  # without a run: what it needs of one is here
    survey.config = small_config(
        sources=list(sources), target=target, objective="erm", harmonize={"rule": "mean", "weights": weights}
    )
    survey.options = Options(lanczos=6, precision="float64", delta=0.5, seed=0)
    survey.size = 6
    risks: dict[str, Risk] = {name: QUADRATICS[name] for name in names}
    return survey.pairs(risks, sweep=True)


def names_of(pairs: Sequence[PairDistance]) -> list[str]:
    return [pair.name for pair in pairs]


def test_the_mean_of_the_sources_and_the_target_come_first() -> None:
    pairs = compared(NAMES, NAMES[:3], "mnistm")
    assert names_of(pairs) == [
        "all sources – mnistm", "mnist – optdigits", "mnist – fonts", "mnist – mnistm", "optdigits – fonts",
        "optdigits – mnistm", "fonts – mnistm",
    ]  # fmt: skip
    assert [len(pair.sweep) for pair in pairs] == [7, 0, 0, 0, 0, 0, 0]
    assert CheckpointSpectrum(step=0, theta_norm=1.0, domains={}, pairs=pairs).main is pairs[0]
    assert [bound.delta for bound in pairs[0].sweep] == [0.5 * factor for factor in (0.125, 0.25, 0.5, 1, 2, 4, 8)]


def test_the_mean_has_the_weights_of_the_sources_that_are_looked_at() -> None:
    main = compared(("mnist", "fonts", "mnistm"), NAMES[:3], "mnistm", weights=[1.0, 2.0, 5.0])[0]
    one, other, target = (QUADRATICS[name] for name in ("mnist", "fonts", "mnistm"))
    hessian = (one.hessian + 5 * other.hessian) / 6 - target.hessian
    assert main.name == "all sources – mnistm"
    assert main.hessian == pytest.approx(float(torch.linalg.matrix_norm(hessian, 2)))
    assert main.gradient == pytest.approx(float(((one.slope + 5 * other.slope) / 6 - target.slope).norm()))


@pytest.mark.parametrize(
    ("sources", "target", "expected"),
    [
        (["mnist"], "mnistm", ["mnist – mnistm", "mnist – fonts", "fonts – mnistm"]),
        (["mnist", "fonts", "mnistm"], None, ["mnist – fonts", "mnist – mnistm", "fonts – mnistm"]),
        (["optdigits"], "mnistm", ["mnist – fonts", "mnist – mnistm", "fonts – mnistm"]),
    ],
    ids=["one source", "no target", "no source"],
)
def test_the_first_pair_is_the_nearest_to_that(sources: list[str], target: str | None, expected: list[str]) -> None:
    """Its bound is measured at other radii, whichever it is."""
    pairs = compared(("mnist", "fonts", "mnistm"), sources, target)
    assert names_of(pairs) == expected
    assert [len(pair.sweep) for pair in pairs] == [7, 0, 0]


def test_a_domain_with_fewer_eigenvalues_keeps_its_columns() -> None:
    """Lanczos ends early where the space is invariant."""
    few, many = ([Eigenvalue(value=float(value), residual=0.0) for value in range(n, 0, -1)] for n in (1, 5))
    domains = {
        name: DomainSpectrum(
            examples=3, loss=0.5, gradient_norm=2.0, top=top, lowest=Eigenvalue(value=-0.25, residual=0.0), trace=7.0,
            trace_error=None, nodes=[0.0], weights=[1.0],
        )
        for name, top in (("few", few), ("many", many))
    }  # fmt: skip
    moment = CheckpointSpectrum(step=1, theta_norm=1.0, domains=domains, pairs=[])
    table = domain_table(Spectrum(run="r", target=None, parameters=9, threads=1, options={}, moments=[moment]))
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert [cells[name] for name in ("λ1", "λ2", "λ3")] == [["1", "5"], ["", "4"], ["", "3"]]
    assert (cells["λ min"], cells["trace"]) == (["-0.25", "-0.25"], ["7", "7"])
