"""Seeds, splits and batches, on a domain whose images tell their position."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difc_ray.data.domain import Domain
from difc_ray.data.family import DatasetFamily
from difc_ray.data.splits import SPLITS, stratified_splits
from difc_ray.determinism import derive_seed, generator
from difc_ray.errors import ConfigError


class Counting(Domain):
    """Image i is filled with the number i."""

    def __init__(self, labels: object, seed: int = 0, name: str = "counting", fill: float = 0.0) -> None:
        super().__init__(name, ("a", "b", "c"), (1, 2, 2), np.asarray(labels), seed)
        self.fill = fill

    def images_at(self, indices: np.ndarray) -> np.ndarray:
        images = np.repeat(indices.astype(np.float32), 4).reshape(-1, 1, 2, 2)
        images[indices == 7] += self.fill
        return images


LABELS = np.array([0] * 50 + [1] * 30 + [2] * 23)


def test_seed_is_the_top_63_bits_of_the_digest() -> None:
    digest = hashlib.sha256(b"3\x00epoch\x00mnist\x0017").hexdigest()
    assert derive_seed(3, "epoch", "mnist", 17) == int(digest, 16) >> (256 - 63)


def test_seeds_of_different_draws_differ() -> None:
    draws = [(s, p, d, t) for s in (0, 1, 11) for p in ("a", "ab") for d in ("", "b", "1") for t in (0, 1, 10)]
    seeds = [derive_seed(*draw) for draw in draws]
    assert len(set(seeds)) == len(draws)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generator_is_named_and_reproducible() -> None:
    expected = np.random.Generator(np.random.PCG64(derive_seed(1, "x", "d", 2))).random(5)
    assert generator(1, "x", "d", 2).random(5).tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=120), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.6, 0.1, 0.3)]))
def test_splits_are_a_partition_in_which_every_class_keeps_its_share(
    labels: list[int], fractions: tuple[float, float, float]
) -> None:
    labels_M = np.array(labels, dtype=np.int64)
    splits = stratified_splits(labels_M, fractions, generator(0, "test"))
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(len(labels)))
    for split, fraction in zip(SPLITS[1:], fractions[1:], strict=True):
        assert len(splits[split]) == min(round(fraction * len(labels)), len(labels))
    for split, fraction in zip(SPLITS, fractions, strict=True):
        assert splits[split].tolist() == sorted(splits[split].tolist())
        for label, count in Counter(labels).items():
            assert abs((labels_M[splits[split]] == label).sum() - fraction * count) < 2.6


def test_splits_of_equal_classes_are_exact() -> None:
    labels = np.arange(2000) % 10
    splits = stratified_splits(labels, (0.8, 0.1, 0.1), generator(0, "test"))
    assert [np.bincount(labels[splits[split]]).tolist() for split in SPLITS] == [[160] * 10, [20] * 10, [20] * 10]


def test_split_inside_a_class_is_random() -> None:
    """Each of 100 examples is held out in about 20 % of the seeds, whatever its position."""
    held = np.zeros(100)
    for seed in range(200):
        splits = stratified_splits(np.zeros(100, dtype=np.int64), (0.8, 0.1, 0.1), generator(seed, "test"))
        held[np.concatenate([splits["val"], splits["test"]])] += 1
    assert held.mean() == pytest.approx(40)
    assert np.abs(held - 40).max() < 5 * np.sqrt(200 * 0.2 * 0.8)


def test_splits_depend_on_seed_and_name_only() -> None:
    first = Counting(LABELS, seed=1).split_indices("test").tolist()
    assert Counting(LABELS, seed=1).split_indices("test").tolist() == first
    assert Counting(LABELS, seed=2).split_indices("test").tolist() != first
    assert Counting(LABELS, seed=1, name="other").split_indices("test").tolist() != first


def test_sizes_and_class_counts() -> None:
    domain = Counting(LABELS)
    assert [domain.size(split) for split in SPLITS] == [83, 10, 10]
    assert domain.size() == domain.size("all") == 103
    for split in (*SPLITS, "all"):
        counted = Counter(LABELS[domain.split_indices(split)].tolist())
        assert domain.class_counts(split).tolist() == [counted[label] for label in range(3)]


def test_an_absent_class_is_counted_as_zero() -> None:
    assert Counting([0] * 20).class_counts().tolist() == [20, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 8, 83, 100, 200])
def test_batches_walk_through_the_permutations_end_to_end(batch_size: int) -> None:
    """Batches laid end to end are epochs laid end to end, and every epoch is a permutation of the train split."""
    domain = Counting(LABELS)
    train = domain.split_indices("train").tolist()
    steps = -(-3 * len(train) // batch_size)
    walked = [int(i) for step in range(steps) for i in Counting(LABELS).batch(5, step, batch_size).indices]
    assert len(walked) == steps * batch_size
    epochs = [walked[start : start + len(train)] for start in range(0, 3 * len(train), len(train))]
    assert all(sorted(epoch) == train for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    one_by_one = [int(domain.batch(5, position, 1).indices[0]) for position in range(len(walked))]
    assert walked == one_by_one


def test_batch_is_a_pure_function() -> None:
    domain, order = Counting(LABELS), [40, 0, 999, 3, 0, 40, 17, 500, 999]
    first = {step: Counting(LABELS).batch(1, step, 16).indices.tolist() for step in order}
    assert all(domain.batch(1, step, 16).indices.tolist() == first[step] for step in order)
    assert domain.batch(2, 3, 16).indices.tolist() != first[3]


def test_domains_walk_in_different_orders() -> None:
    """Compared by rank in the train split, as the splits differ as well."""
    domains = [Counting(LABELS, name=name) for name in ("one", "other")]
    ranks = [np.searchsorted(d.split_indices("train"), d.batch(1, 0, 83).indices).tolist() for d in domains]
    assert sorted(ranks[0]) == sorted(ranks[1]) == list(range(83))
    assert ranks[0] != ranks[1]


def test_writing_into_a_batch_changes_no_other() -> None:
    domain = Counting(LABELS)
    batch = domain.batch(0, 0, 4)
    kept = batch.indices.copy()
    batch.images.zero_()
    batch.labels.zero_()
    batch.indices[:] = 0
    again = domain.batch(0, 0, 4)
    assert again.indices.tolist() == kept.tolist()
    assert again.images[:, 0, 0, 0].tolist() == kept.tolist()
    assert again.labels.tolist() == LABELS[kept].tolist()


def test_batch_carries_what_belongs_together() -> None:
    batch = Counting(LABELS).batch(0, 2, 16)
    assert len(batch) == 16
    assert batch.images.shape == (16, 1, 2, 2)
    assert batch.images[:, 0, 1, 1].tolist() == batch.indices.tolist()
    assert batch.labels.tolist() == LABELS[batch.indices].tolist()


@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_evaluation_batches_give_each_example_once_in_order(split: str) -> None:
    domain = Counting(LABELS)
    batches = list(domain.evaluation_batches(split, 32))
    seen = [int(i) for batch in batches for i in batch.indices]
    expected = [i for i in range(103) if split == "all" or i in set(domain.split_indices(split).tolist())]
    assert seen == expected
    assert all(len(batch) == 32 for batch in batches[:-1])


def test_fingerprint_follows_the_content_and_not_the_seed() -> None:
    fingerprint = Counting(LABELS).fingerprint()
    assert len(fingerprint) == 64
    assert Counting(LABELS, seed=9).fingerprint() == fingerprint
    changed = LABELS.copy()
    changed[60] = 0
    others = [Counting(LABELS, fill=1e-3), Counting(changed), Counting(LABELS[:-1]), Counting(LABELS, name="other")]
    assert fingerprint not in {other.fingerprint() for other in others}


def test_unknown_domain_is_refused() -> None:
    class Family(DatasetFamily):
        def domain_names(self) -> tuple[str, ...]:
            return ("photo", "sketch")

        def load(self, domain_name: str) -> Domain:
            self.check_domain(domain_name)
            return Counting(LABELS, name=domain_name)

    family = Family({}, None, 0)
    assert family.load("photo").name == "photo"
    with pytest.raises(ConfigError, match=r"Unknown domain `skech`\. Did you mean `sketch`\?"):
        family.load("skech")
