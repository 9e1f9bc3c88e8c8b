"""Exceptions that a user can meet, each with the exit code of the command line.

Every message is one sentence with the rule, the value found and the remedy. Our own
invariants use ``assert``; nothing here is raised for a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar


class DifcError(Exception):
    """Base of every error that is shown to the user without a traceback."""

    exit_code: ClassVar[int] = 1


class ConfigError(DifcError):
    """The configuration or the command line is wrong (exit code 2)."""

    exit_code: ClassVar[int] = 2


class DataError(DifcError):
    """A dataset, a domain or an example is missing or unusable (exit code 3)."""

    exit_code: ClassVar[int] = 3


class ClusterError(DifcError):
    """Ray cannot be reached, or has not what the run needs (exit code 4)."""

    exit_code: ClassVar[int] = 4


class NumericError(DifcError):
    """Non-finite numbers beyond the allowed budget, or a failed certificate (exit code 5)."""

    exit_code: ClassVar[int] = 5


class CheckpointError(DifcError):
    """A checkpoint or a run folder is missing, damaged, foreign or in use (exit code 6)."""

    exit_code: ClassVar[int] = 6


class WorkerError(DifcError):
    """Domain workers failed more often than allowed, or failed for good (exit code 7)."""

    exit_code: ClassVar[int] = 7


class Interrupted(DifcError):
    """The run was stopped by a signal after its checkpoint was written (exit code 128 + signal)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def code(self) -> int:
        """Exit code by the shell's convention: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signal_number


def ended(text: str) -> str:
    """The text with a mark at its end, as another sentence follows.

    >>> ended("no answer"), ended("is it running?")
    ('no answer.', 'is it running?')
    """
    return text if text.endswith((".", "?", "!")) else f"{text}."
