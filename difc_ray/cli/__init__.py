"""The command line: ``difc-ray`` or ``python -m difc_ray``."""

from difc_ray.cli.execution import main as main
