"""Pace and patience of the uploader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from difc_ray.errors import ConfigError

_PREFIX = "DIFC_RAY_TRACKING_"
URI_VARIABLE = f"{_PREFIX}URI"
"""Carries the tracking URI to the child: command lines and files can be read by others, an environment cannot."""


@dataclass(frozen=True, kw_only=True)
class UploadSettings:
    """Each field can be set by an environment variable: ``DIFC_RAY_TRACKING_DRAIN_S=120``."""

    flush_s: float = 2.0
    """Seconds between two looks at the journal, > 0."""
    backoff_first_s: float = 1.0
    """Seconds until the first repetition after a failure, > 0; doubles with each failure, with jitter."""
    backoff_max_s: float = 60.0
    """Upper bound of that, > 0."""
    request_timeout_s: float = 10.0
    """Seconds that one request may take, > 0 (whole seconds: MLflow rounds)."""
    drain_s: float = 30.0
    """Seconds that the end of a run waits for the last records, >= 0."""
    max_restarts: int = 3
    """How often an uploader that crashed is started again, >= 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name in ("drain_s", "max_restarts")
            if not value >= 0 or (value == 0 and not may_be_zero):
                rule = "not be negative" if may_be_zero else "be positive"
                raise ConfigError(
                    f"`{field.name}` of the MLflow uploader must {rule}, got {value} (settings of the uploader). "
                    f"Correct {_PREFIX}{field.name.upper()}, or leave it unset."
                )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> UploadSettings:
        """The defaults, with what the environment sets; ``MLFLOW_HTTP_REQUEST_TIMEOUT`` counts as well.

        Args:
            environ: the variables; None: ``os.environ``.

        Raises:
            ConfigError: a value is not a number in range.
        """
        variables = os.environ if environ is None else environ
        found: dict[str, float | int] = {}
        for field in fields(cls):
            name = _PREFIX + field.name.upper()
            if field.name == "request_timeout_s" and name not in variables:
                name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
            if name in variables:
                kind = int if field.name == "max_restarts" else float
                try:
                    found[field.name] = kind(variables[name])
                except ValueError:
                    raise ConfigError(
                        f"{name} must be a number, got `{variables[name]}` (environment). Correct it, or unset it."
                    ) from None
        return cls(**found)  # type: ignore[arg-type]  # max_restarts alone is an int, and it was read as one

    def to_environ(self) -> dict[str, str]:
        """The variables from which :meth:`from_environ` reads the same settings."""
        return {_PREFIX + field.name.upper(): repr(getattr(self, field.name)) for field in fields(self)}
