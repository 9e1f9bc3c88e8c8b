"""The command line: ``difc-ray`` or ``python -m difc_ray``."""

from difc_ray.cli.app import main as main
