"""Sweeps: a search space in a file, its trials on Ray Tune, and what they came to.

Nothing that a sweep is resumed from is a pickle: the folder of a sweep holds its points, and every trial is a run
folder with checkpoints of its own.
"""

from __future__ import annotations
