"""Objectives by name: ``OBJECTIVES.get("hutchinson")``. Adding one is a file here and an import line below."""

from difc_ray.objectives.base import OBJECTIVES as OBJECTIVES
from difc_ray.objectives.base import Coefficients as Coefficients
from difc_ray.objectives.base import Measurement as Measurement
from difc_ray.objectives.base import Objective as Objective
from difc_ray.objectives.base import ObjectiveSettings as ObjectiveSettings
from difc_ray.objectives.base import Pairing as Pairing
from difc_ray.objectives.base import Vectors as Vectors
from difc_ray.objectives.base import penalties as penalties
from difc_ray.objectives.coral import Coral as Coral
from difc_ray.objectives.dann_domain import DannDomain as DannDomain
from difc_ray.objectives.erm import BASELINE as BASELINE
from difc_ray.objectives.erm import Erm as Erm
from difc_ray.objectives.fishr import Fishr as Fishr
from difc_ray.objectives.gradient import Gradient as Gradient
from difc_ray.objectives.hgp import Hgp as Hgp
from difc_ray.objectives.hutchinson import Hutchinson as Hutchinson
from difc_ray.objectives.irm import Irm as Irm
from difc_ray.objectives.mixup import MixedLoss as MixedLoss
from difc_ray.objectives.mixup import Mixup as Mixup
from difc_ray.objectives.mmd import Mmd as Mmd
from difc_ray.objectives.vrex import Vrex as Vrex
