"""Alignment of Hessian diagonals and gradients (the "Hutchinson" penalty)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, ObjectiveSettings, Vectors, gradient_term
from difc_ray.objectives.curvature import Curvature
from difc_ray.objectives.spread import cotangents, deviations, spread, weighted_mean


@OBJECTIVES.register("hutchinson")
class Hutchinson(Objective):
    """``α Σ_e w_e ‖D_e − D̄‖² + β Σ_e w_e ‖g_e − ḡ‖²`` with D the diagonal of the head's Hessian.

    D is exact (`estimator: exact`, closed form) or estimated from m Rademacher probes, ``D̂ = (1/m) Σ v ∘ H v``.
    The estimate is unbiased, the penalty on it is not. Its expectation exceeds that of the exact diagonal by

    * `shared` probes: ``(1/m) Σ_e w_e ‖offdiag(H_e − H̄)‖²``, which vanishes when the domains' Hessians agree
      (between two domains ``(1/m) ‖offdiag(H_a − H_b)‖²``; with m = 1 the two-domain distance is ``‖H_a − H_b‖_F²``);
    * `independent` probes: the noise of every single estimate, a term on the off-diagonal of each domain's own Hessian
      (between two domains ``(1/m)(‖offdiag H_a‖² + ‖offdiag H_b‖²)``): a flatness penalty that no agreement removes;
    * `released` (the authors' code): as `independent`, and the mean has a probe set of its own, so that D̄ is not the
      mean of the D_e and the deviations do not sum to zero. Worker e then also answers ``M_e``, its part of
      D̄ = Σ w_e M_e, whose cotangent ``−2 α w_e Σ_f w_f (D_f − D̄)`` carries the gradient through the mean;
      `detach_mean: true` drops it, as the released DomainBed class does.

    Cost of a step: no more backward passes than `erm` for a rule that sees one row per domain, twice as many where it
    sees the penalty apart (`gh`); m products of head size for the estimate.

    Source: Hemati et al., "Understanding Hessian Alignment for Domain Generalization", ICCV 2023, L_Hutchinson.
    Differs from the source: the weights w_e may differ (uniform there); D may be exact; probes may be shared.
    """

    scopes = ("head", "all")

    @classmethod
    def idle(cls, settings: ObjectiveSettings) -> dict[str, str]:
        """The probes where the diagonal is exact, and the mean's detachment where it needs no gradient of its own."""
        if settings.estimator == "exact":
            return dict.fromkeys(("probes", "probe_sets", "detach_mean"), "`alignment.estimator=exact`")
        if settings.probe_sets != "released":
            return {"detach_mean": f"`alignment.probe_sets={settings.probe_sets}`"}
        return {}

    @classmethod
    def refusal(cls, settings: ObjectiveSettings, scope: str) -> tuple[str, str, tuple[str, ...]] | None:
        """The exact diagonal of more than the head."""
        if scope == "head" or settings.estimator != "exact":
            return None
        what = "the exact Hessian diagonal has a closed form for the head only"
        remedy = "Write `alignment.scope=head`; beyond the head the diagonal takes `alignment.estimator=hutchinson`."
        return what, remedy, ("estimator", "scope")

    def details(self) -> list[str]:
        """How the diagonal is measured."""
        return [self.settings.estimator]

    def probe_sets(self) -> dict[str, bool]:
        """`own` for the domain's estimate, `mean` (shared) for the released form's estimate of the mean."""
        if self.settings.estimator == "exact":
            return {}
        if self.settings.probe_sets == "released":
            return {"own": False, "mean": True}
        return {"own": self.settings.probe_sets == "shared"}

    def measure(self, head: Curvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``g``, ``D`` and, in the released form, ``M``."""
        if self.settings.estimator == "exact":
            return {"g": head.gradient(), "D": head.hessian_diagonal()}
        answers = {"g": head.gradient(), "D": head.hutchinson_diagonal(probes["own"])}
        if "mean" in probes:
            answers["M"] = head.hutchinson_diagonal(probes["mean"])
        return answers

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``2 α w_e (D_e − D̄)`` and ``2 β w_e (g_e − ḡ)``; for the released form also that of the mean."""
        released = "M" in answers[0]
        diagonals = [answer["D"] for answer in answers]
        mean_S = weighted_mean(weights_K, [answer["M"] for answer in answers] if released else diagonals)
        deviation_K = deviations(diagonals, mean_S)
        pulled_D = cotangents(coefficients.alpha, weights_K, deviation_K)
        pulled_g, term_g = gradient_term(answers, weights_K, coefficients.beta)
        pulled = [{"D": d, "g": g} for d, g in zip(pulled_D, pulled_g, strict=True)]
        if released and not self.settings.detach_mean:
            total_S = np.sum(pulled_D, axis=0)
            for weight, vectors in zip(weights_K, pulled, strict=True):
                vectors["M"] = -weight * total_S
        return pulled, {"hessian": coefficients.alpha * spread(weights_K, deviation_K), "gradient": term_g}
