"""What is wrong with a dataset or its pictures, as people are told."""

from __future__ import annotations

from typing import TypeVar

from difc_ray.errors import ConfigError, DataError, DifcError

E = TypeVar("E", bound="LocatedError")


class LocatedError(DifcError):
    """An error with a place, which a caller that knows it better can say better.

    Args:
        what: the rule that is broken.
        got: what was found.
        where: the place: a key, or dataset and domain.
        remedy: how to fix it.
    """

    def __init__(self, what: str, got: str, where: str, remedy: str) -> None:
        super().__init__(f"{what}, got {got} ({where}). {remedy}")
        self.parts = self.what, self.got, self.where, self.remedy = (what, got, where, remedy)

    def __reduce__(self) -> tuple[type[LocatedError], tuple[str, str, str, str]]:
        return type(self), self.parts

    def at(self: E, where: str) -> E:
        """The same, with a place that says more."""
        what, got, _, remedy = self.parts
        return type(self)(what, got, where, remedy)


class MalformedDataError(LocatedError, DataError):
    """A dataset that is not made as datasets must be."""


class FilesMissingError(MalformedDataError):
    """Files of a domain are not there; other domains of its dataset may be complete."""


class AugmentationError(LocatedError, ConfigError):
    """A pipeline that cannot be used, or does not suit a picture."""


class ImageSizeError(ConfigError):
    """A dataset does not make images of the size that was asked for."""
