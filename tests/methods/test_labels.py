"""UIC's label bookkeeping against a naive transcription of docs/protocol.md, Pretraining, and its properties."""

import collections
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from uic_core.data import partition
from uic_core.methods import labels, order


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


cases = st.tuples(st.integers(0, 2**32), st.integers(2, 30), st.integers(0, 100), st.floats(0, 3))


def drawn(seed: int, classes: int, extra: int, skew: float) -> np.ndarray:
    """Labels with empty and singleton classes: the more, the larger the skew."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, classes + 1) ** -skew
    return rng.choice(classes, classes + extra, p=weights / weights.sum()).astype(np.int32)


def split(values: np.ndarray, classes: int, seed: int = 1) -> tuple[np.ndarray, partition.Groups]:
    """Labels and groups after splitting."""
    got = values.copy()
    groups = partition.group(got, classes, np.random.default_rng(seed))
    labels.split_empty(groups, got)
    return got, groups


def check_groups(groups: partition.Groups, values: np.ndarray) -> None:
    """Every image lies in the group of its label, once."""
    for number, size in enumerate(groups.sizes):
        assert size == (values == number).sum()
        assert (values[groups.of(number)] == number).all()
    assert sorted(groups.members.tolist()) == list(range(len(values)))


@pytest.fixture(params=[1 << 18, 7])
def segment(request, monkeypatch) -> int:
    """Segments that hold all images, and some that hold hardly a class."""
    monkeypatch.setattr(partition, "SEGMENT", request.param)
    monkeypatch.setattr(order, "SEGMENT", request.param)
    return request.param


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases)
def test_groups_hold_every_image_with_its_label(segment, case):
    values = drawn(*case)
    check_groups(partition.group(values, case[1], np.random.default_rng(1)), values)
    plain = partition.group(values, case[1])
    check_groups(plain, values)
    assert all((np.diff(plain.of(number)) > 0).all() for number in range(case[1]))


def test_members_lie_in_random_order():
    values = np.array([1, 0, 1, 1, 0], np.int32)
    found = collections.Counter(
        tuple(partition.group(values, 2, np.random.default_rng(seed)).members.tolist()) for seed in range(1200)
    )
    assert len(found) == 12  # 2! 3!
    assert min(found.values()) > 60


@settings(max_examples=60, deadline=None)
@given(cases)
def test_splitting_moves_as_many_images_as_the_transcription_between_the_same_classes(case):
    values, classes = drawn(*case), case[1]
    got, groups = split(values, classes)
    check_groups(groups, got)
    naive = np.array(naive_split(values.tolist(), classes, np.random.default_rng(1)))
    for before in range(classes):  # where each class's images went
        ours, theirs = (np.bincount(after[values == before], minlength=classes) for after in (got, naive))
        assert ours.tolist() == theirs.tolist()


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """10^4 labels of 10^3 classes; many are empty, many hold one image."""
    values = drawn(0, 1000, 9000, 1.2)
    sizes = partition.class_sizes(values, 1000)
    assert (sizes == 0).sum() > 50
    assert (sizes == 1).sum() > 50
    return values


def test_splitting_equals_the_transcription_at_ten_thousand_images(large):
    got, groups = split(large, 1000)
    check_groups(groups, got)
    naive = naive_split(large.tolist(), 1000, np.random.default_rng(1))
    assert groups.sizes.tolist() == np.bincount(naive, minlength=1000).tolist()
    assert groups.sizes.min() > 0


def test_a_random_half_moves():
    moved = np.zeros(8)
    for seed in range(800):
        got, _ = split(np.zeros(8, np.int32), 2, seed)
        assert got.sum() == 4
        moved += got
    assert (abs(moved / 800 - 0.5) < 0.08).all()


@settings(max_examples=60, deadline=None)
@given(cases)
def test_after_splitting_no_class_is_empty_and_others_are_left_alone(case):
    values, classes = drawn(*case), case[1]
    got, groups = split(values, classes)
    assert groups.empty() == 0
    if (partition.class_sizes(values, classes) > 0).all():
        assert (got == values).all()
    assert set(got[got != values]) <= set(np.flatnonzero(partition.class_sizes(values, classes) == 0))


def test_the_last_of_several_draws_wins():
    values = np.array([9, 9, 9], np.int32)
    labels.update(values, np.array([0, 2, 0]), np.array([1, 2, 3]))
    assert values.tolist() == [3, 9, 2]


def test_initial_labels_are_uniform_int32():
    values = labels.draw_initial(100_000, 10, 0)
    assert values.dtype == np.int32
    assert partition.class_sizes(values, 10).min() > 9_500


def nmi(one, other) -> float:
    one = np.array(one, np.int32)
    return partition.nmi(partition.group(one, int(one.max()) + 1), np.array(other, np.int32))


def test_nmi_is_geometric_by_hand():
    """H(one) = ln 2, H(other) = 1.5 ln 2, MI = ln 2: 1 / sqrt(1.5)."""
    assert nmi([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(1.5**-0.5)
    assert nmi([0, 0, 1, 1], [5, 5, 3, 3]) == pytest.approx(1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6))
def test_nmi_equals_scikit_learn(segment, images, one, other, seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, one, images, dtype=np.int32)
    second = np.where(rng.random(images) < 0.5, first % other, rng.integers(0, other, images)).astype(np.int32)
    expected = normalized_mutual_info_score(first, second, average_method="geometric")
    assert nmi(first, second) == pytest.approx(expected, abs=1e-9)


def test_labels_and_groups_are_all_there_is_for_an_image():
    """Eight bytes an image: what is allocated on the way does not grow with the images."""

    def peak(images: int) -> int:
        rng = np.random.default_rng(0)
        tracemalloc.start()
        values = labels.draw_initial(images, 1000, 0)
        groups = partition.group(values, 1000, rng)
        labels.split_empty(groups, values)
        balanced = order.Balanced(groups, 0, 0)
        for first in range(0, images, 1 << 14):
            positions = balanced.draw(first, min(first + (1 << 14), images))[0] % images
            labels.update(values, positions, positions % 1000)
        balanced.coverage()
        partition.nmi(groups, values)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert (peak(8_000_000) - peak(2_000_000)) / 6_000_000 <= 8.2
