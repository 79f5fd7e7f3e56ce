"""UIC's label bookkeeping against a naive transcription of PROTOCOL section 2, and its properties."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from uic_core.pretrain import labels


def naive_split(values: list[int], classes: int, rng: np.random.Generator) -> list[int]:
    """Step 2, word for word: everything is counted again for every empty class."""
    values = list(values)
    for empty in range(classes):
        if empty in values:
            continue
        counts = collections.Counter(values)
        largest = min(k for k in counts if counts[k] == max(counts.values()))
        members = list(rng.permutation([i for i, value in enumerate(values) if value == largest]))
        for i in members[len(members) // 2 :]:
            values[i] = empty
    return values


def naive_order(values: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Step 3, word for word, before the cut to N."""
    draws = len(values) // classes + 1
    drawn = []
    for k in range(classes):
        members = np.flatnonzero(values == k)
        drawn.append(rng.choice(members, draws, replace=len(members) <= draws))
    return rng.permutation(np.concatenate(drawn))


def naive_draws(values: np.ndarray, classes: int) -> dict[int, tuple[int, bool]]:
    """Step 3: class -> (draws, with replacement?)."""
    draws = len(values) // classes + 1
    return {k: (draws, bool((values == k).sum() <= draws)) for k in range(classes)}


cases = st.tuples(st.integers(0, 2**32), st.integers(2, 30), st.integers(0, 100), st.floats(0, 3))


def drawn(seed: int, classes: int, extra: int, skew: float) -> np.ndarray:
    """Labels with empty and singleton classes: the more, the larger the skew."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, classes + 1) ** -skew
    return rng.choice(classes, classes + extra, p=weights / weights.sum()).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_splitting_equals_the_transcription(case):
    values, classes = drawn(*case), case[1]
    got = labels.split_empty_classes(values, classes, np.random.default_rng(1))
    assert got.tolist() == naive_split(values.tolist(), classes, np.random.default_rng(1))


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """10^4 labels of 10^3 classes; many are empty, many hold one image."""
    values = drawn(0, 1000, 9000, 1.2)
    sizes = labels.class_sizes(values, 1000)
    assert (sizes == 0).sum() > 50
    assert (sizes == 1).sum() > 50
    return values


def test_splitting_equals_the_transcription_at_ten_thousand_images(large):
    got = labels.split_empty_classes(large, 1000, np.random.default_rng(1))
    assert got.tolist() == naive_split(large.tolist(), 1000, np.random.default_rng(1))


@settings(max_examples=60, deadline=None)
@given(cases)
def test_after_splitting_no_class_is_empty_and_others_are_left_alone(case):
    values, classes = drawn(*case), case[1]
    before = values.copy()
    got = labels.split_empty_classes(values, classes, np.random.default_rng(1))
    assert (labels.class_sizes(got, classes) > 0).all()
    assert (values == before).all(), "a pure function"
    if (labels.class_sizes(values, classes) > 0).all():
        assert (got == values).all()
    assert set(got[got != values]) <= set(np.flatnonzero(labels.class_sizes(values, classes) == 0))


@settings(max_examples=60, deadline=None)
@given(cases)
def test_balanced_order_draws_every_class_as_the_transcription_says(case):
    classes = case[1]
    values = labels.split_empty_classes(drawn(*case), classes, np.random.default_rng(1))
    n = len(values)
    # before the cut: N' = draws * K positions; the cut drops a random few of them
    order = labels.balanced_order(values, classes, np.random.default_rng(2))
    assert order.shape == (n,)
    dropped = (n // classes + 1) * classes - n
    for k, (draws, replacement) in naive_draws(values, classes).items():
        positions = order[values[order] == k]
        assert draws - dropped <= len(positions) <= draws
        if not replacement:
            assert len(set(positions.tolist())) == len(positions)


def test_balanced_order_covers_as_many_images_as_the_transcription(large):
    """Coverage tells draws with replacement from draws without: means of 20 orders agree within a few deviations."""
    values = labels.split_empty_classes(large, 1000, np.random.default_rng(1))
    ours, naive = (
        [labels.coverage(function(values, 1000, np.random.default_rng(seed))[:10_000], 10_000) for seed in range(20)]
        for function in (labels.balanced_order, naive_order)
    )
    assert np.mean(ours) == pytest.approx(np.mean(naive), abs=4 * (np.std(ours) + np.std(naive)) / 20**0.5)
    assert np.std(ours) > 0


def test_balanced_order_at_ten_thousand_images_and_a_thousand_classes(large):
    values = labels.split_empty_classes(large, 1000, np.random.default_rng(0))
    sizes = labels.class_sizes(values, 1000)
    assert (sizes == 1).any()
    order = labels.balanced_order(values, 1000, np.random.default_rng(0))
    counts = np.bincount(values[order], minlength=1000)
    assert counts.max() == 11
    assert counts.sum() == 10_000
    singleton = int(np.flatnonzero(sizes == 1)[0])
    assert counts[singleton] > 1, "a class of one image is drawn again and again"


def test_balanced_order_is_uniform_within_a_class():
    values = np.array([0] * 30 + [1] * 30 + [2] * 3, np.int32)
    hits = np.zeros(63)
    for seed in range(400):
        hits += np.bincount(labels.balanced_order(values, 3, np.random.default_rng(seed)), minlength=63)
    for members in (hits[:30], hits[30:60], hits[60:]):
        assert members.std() / members.mean() < 0.12


def test_balanced_order_skips_classes_without_members():
    values = np.array([0, 0, 5, 5], np.int32)
    order = labels.balanced_order(values, 9, np.random.default_rng(0))
    assert len(order) == 4
    assert set(values[order]) == {0, 5}


def test_the_last_of_several_draws_wins():
    values = np.array([9, 9, 9], np.int32)
    labels.update(values, np.array([0, 2, 0]), np.array([1, 2, 3]))
    assert values.tolist() == [3, 9, 2]


def test_initial_labels_are_uniform_int32():
    values = labels.draw_initial(100_000, 10, np.random.default_rng(0))
    assert values.dtype == np.int32
    assert labels.class_sizes(values, 10).min() > 9_500


def test_coverage_by_hand():
    assert labels.coverage(np.array([0, 0, 3, 1]), 4) == pytest.approx(0.75)


def test_nmi_is_geometric_by_hand():
    """H(one) = ln 2, H(other) = 1.5 ln 2, MI = ln 2: 1 / sqrt(1.5)."""
    assert labels.nmi(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])) == pytest.approx(1.5**-0.5)
    assert labels.nmi(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3])) == pytest.approx(1)


@given(st.integers(1, 300), st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6))
def test_nmi_equals_scikit_learn(images, one, other, seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, one, images, dtype=np.int32)
    second = np.where(rng.random(images) < 0.5, first % other, rng.integers(0, other, images)).astype(np.int32)
    expected = normalized_mutual_info_score(first, second, average_method="geometric")
    assert labels.nmi(first, second) == pytest.approx(expected, abs=1e-9)
