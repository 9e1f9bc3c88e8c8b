"""What is looked at before a run: whether its domains can be trained and validated on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from difc_ray.config import (
    Config,
    DataProblems,
    check_data,
)
from difc_ray.data import DatasetFamily, Domain
from difc_ray.errors import DataError
from tests.sentences import SENTENCE


class _Sized(Domain):
    """A domain of so many examples of one class."""

    def __init__(self, name: str, n: int) -> None:
        super().__init__(name, ("a", "b"), (1, 2, 2), np.zeros(n, dtype=np.int64), seed=0)

    def images_at(self, indices: Any) -> Any:
        assert len(indices) <= 2, "sizes are enough, and a look at the first images"
        return np.zeros((len(indices), 1, 2, 2), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class _SizesOptions:
    sizes: dict[str, int]


class _Sizes(DatasetFamily):
    """Domains of given sizes; those of negative size cannot be read."""

    option_type = _SizesOptions

    description, class_names, image_shape = "sizes", ("a", "b"), (1, 2, 2)

    def domain_names(self) -> tuple[str, ...]:
        return tuple(self.options.sizes)

    def load(self, domain_name: str) -> Domain:
        if self.options.sizes[domain_name] < 0:
            raise DataError(f"Domain `{domain_name}` must be readable. Found a hole. Fill it.")
        return _Sized(domain_name, self.options.sizes[domain_name])


def test_domains_need_a_batch_and_examples_to_validate_on() -> None:
    config = Config(sources=("big", "small"), target="none", batch_size=40)
    domains = check_data(config, _Sizes({"sizes": {"big": 100, "small": 50, "none": 1}}, None, 0))  # 40 of 50 train
    assert list(domains) == ["big", "small", "none"]
    with pytest.raises(DataProblems) as caught:
        check_data(config, _Sizes({"sizes": {"big": 3, "small": 49, "none": 0}}, None, 0))
    assert caught.value.exit_code == 3
    big, validation, small, target = caught.value.problems
    assert big.startswith(
        "domain `big` must have at least `batch_size = 40` training examples, got 3 (dataset `digits`)"
    )
    assert "`batch_size=3` or less" in big
    assert validation.startswith("domain `big` must have validation examples, got 0")
    assert "domain `small`" in small
    assert target.startswith("target domain `none` must have examples, got 0")
    assert all(SENTENCE.fullmatch(problem) for problem in caught.value.problems)
    with pytest.raises(DataProblems) as caught:
        check_data(config, _Sizes({"sizes": {"big": -1, "small": 3, "none": -1}}, None, 0))
    assert [problem[:14] for problem in caught.value.problems] == [
        "Domain `big` m",
        "domain `small`",
        "domain `small`",
        "Domain `none` ",
    ]
