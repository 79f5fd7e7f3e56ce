"""An epoch's order against a naive transcription of docs/protocol.md, Pretraining, and its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from uic_core.data import partition
from uic_core.methods import deepcluster, labels, order


def naive_order(values: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Step 3, word for word, before the cut to N."""
    draws = len(values) // classes + 1
    drawn = []
    for k in range(classes):
        members = np.flatnonzero(values == k)
        drawn.append(rng.choice(members, draws, replace=len(members) <= draws))
    return rng.permutation(np.concatenate(drawn))


def balanced(values: np.ndarray, classes: int, seed: int = 0, epoch: int = 0) -> order.Balanced:
    return order.Balanced(partition.group(values, classes, np.random.default_rng([seed, epoch])), seed, epoch)


def drawn(seed: int, classes: int, extra: int, skew: float) -> np.ndarray:
    """Labels without an empty class: the more singletons, the larger the skew."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1.0, classes + 1) ** -skew
    values = rng.choice(classes, classes + extra, p=weights / weights.sum()).astype(np.int32)
    labels.split_empty(partition.group(values, classes, rng), values)
    return values


cases = st.tuples(st.integers(0, 2**32), st.integers(2, 30), st.integers(0, 100), st.floats(0, 3))


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 40))
def test_every_class_is_drawn_as_the_transcription_says(case, block):
    classes, values = case[1], drawn(*case)
    images, found = len(values), balanced(values, classes)
    assert len(found) == images
    parts = [found.draw(first, min(first + block, images)) for first in range(0, images, block)]
    numbers, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert len(set(numbers.tolist())) == images, "an image drawn again is seen in another view"
    positions = numbers % images
    assert (values[positions] == targets).all()
    draws = images // classes + 1
    dropped = draws * classes - images  # by the cut
    for k in range(classes):
        own = positions[targets == k]
        assert draws - dropped <= len(own) <= draws
        if (values == k).sum() > draws:
            assert len(set(own.tolist())) == len(own)
    assert found.coverage() == pytest.approx(len(set(positions.tolist())) / images)


def naive_sorted_list(values: np.ndarray, classes: int, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeepCluster's published data set, word for word: what its loader returns for the sampler's numbers."""
    images, targets = [], []
    for k in range(classes):
        for image in np.flatnonzero(values == k):
            images.append(image)
            targets.append(k)
    return np.array([images[number] for number in drawn]), np.array([targets[number] for number in drawn])


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 40))
def test_the_published_order_looks_draws_up_in_the_sorted_list(case, block):
    classes, values = case[1], drawn(*case)
    images, meant = len(values), balanced(values, classes)
    found = deepcluster.SortedList(meant, values, classes)
    assert len(found) == images
    parts = [found.draw(first, min(first + block, images)) for first in range(0, images, block)]
    numbers, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    wanted = naive_sorted_list(values, classes, meant.draw(0, images)[0] % images)
    assert (numbers % images).tolist() == wanted[0].tolist()
    assert targets.tolist() == wanted[1].tolist()
    assert len(set(numbers.tolist())) == images, "an image drawn again is seen in another view"
    assert found.coverage() == pytest.approx(len(set(wanted[0].tolist())) / images)


@pytest.mark.parametrize("skew", [0.3, 0.6, 1.0])
def test_published_draws_follow_class_size_and_ours_are_equal(skew):
    """The mean draws of a class, and its correlation with class size, as the transcription has them."""
    classes, images = 100, 10_000
    values = drawn(1, classes, images - classes, skew)
    sizes = partition.class_sizes(values, classes)
    theirs, naive = np.zeros((2, 20, classes))
    for seed in range(20):
        meant = balanced(values, classes, seed)
        ours = np.bincount(meant.draw(0, images)[1], minlength=classes)
        assert ours.max() == images // classes + 1
        assert ours.min() >= images // classes - 8  # the cut takes 100 of 10,100 slots
        theirs[seed] = np.bincount(deepcluster.SortedList(meant, values, classes).draw(0, images)[1], minlength=classes)
        numbers = naive_order(values, classes, np.random.default_rng(seed))[:images]
        naive[seed] = np.bincount(naive_sorted_list(values, classes, numbers)[1], minlength=classes)
        assert np.corrcoef(theirs[seed], sizes)[0, 1] > 0.9
    correlations = [np.mean([np.corrcoef(row, sizes)[0, 1] for row in draws]) for draws in (theirs, naive)]
    assert correlations[0] == pytest.approx(correlations[1], abs=0.01)
    assert theirs.mean(0) == pytest.approx(naive.mean(0), abs=6 * (naive.std(0).max() + 1) / 20**0.5)


def test_targets_stay_while_labels_change():
    values = drawn(0, 5, 60, 1)
    found, before = balanced(values, 5), values.copy()
    numbers, targets = found.draw(0, len(values))
    positions = numbers % len(values)
    values[:] = 0
    assert (found.draw(0, len(values))[1] == targets).all()
    assert (before[positions] == targets).all()


def test_a_thousand_classes_with_singletons():
    values = drawn(0, 1000, 9000, 1.2)
    sizes = partition.class_sizes(values, 1000)
    assert (sizes == 1).any()
    targets = balanced(values, 1000).draw(0, 10_000)[1]
    counts = np.bincount(targets, minlength=1000)
    assert counts.max() == 11
    singleton = int(np.flatnonzero(sizes == 1)[0])
    assert counts[singleton] > 1, "a class of one image is drawn again and again"
    ours = [balanced(values, 1000, seed).coverage() for seed in range(20)]
    naive = [
        len(set(naive_order(values, 1000, np.random.default_rng(seed))[:10_000].tolist())) / 10_000
        for seed in range(20)
    ]
    assert np.mean(ours) == pytest.approx(np.mean(naive), abs=4 * (np.std(ours) + np.std(naive)) / 20**0.5)
    assert np.std(ours) > 0


def test_draws_are_uniform_within_a_class():
    values = np.array([0] * 30 + [1] * 30 + [2] * 3, np.int32)
    hits = np.zeros(63)
    for seed in range(400):
        hits += np.bincount(balanced(values, 3, seed).draw(0, 63)[0] % 63, minlength=63)
    for members in (hits[:30], hits[30:60], hits[60:]):
        assert members.std() / members.mean() < 0.12


def test_classes_without_members_are_skipped():
    values = np.array([0, 0, 5, 5], np.int32)
    draws, targets = balanced(values, 9).draw(0, 4)
    assert set(targets.tolist()) == {0, 5}
    assert (values[draws % 4] == targets).all()


@given(st.integers(1, 400), st.integers(0, 10**9), st.integers(0, 600))
def test_a_permutation_takes_every_place_once(size, seed, epoch):
    found = order.Permutation(size, seed, epoch)(np.arange(size))
    assert sorted(found.tolist()) == list(range(size))


@pytest.mark.parametrize("places", [[5], [0, 7], [-1], [1 << 32]])
def test_a_place_beyond_a_permutation_is_refused(places):
    """A number beyond may lie on a cycle of such numbers alone, and the search for one inside would never end."""
    permutation = order.Permutation(5, 0, 0)
    assert permutation(np.arange(0)).tolist() == []
    with pytest.raises(AssertionError, match="places beyond 5"):
        permutation(np.array(places))


def test_permutations_are_even():
    """Where a place goes, and where two neighbours go, over many seeds: chi-square against uniform."""
    size, seeds = 12, 6000
    found = np.array([order.Permutation(size, seed, 0)(np.arange(size)) for seed in range(seeds)])
    for place in range(size):
        assert stats.chisquare(np.bincount(found[:, place], minlength=size)).pvalue > 1e-5
    pairs = np.bincount(found[:, 0] * size + found[:, 1], minlength=size * size).reshape(size, size)
    assert pairs.diagonal().sum() == 0
    assert stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-5


def test_large_permutations_leave_no_order_behind():
    found = order.Permutation(1_281_167, 3, 7)(np.arange(1_281_167))
    assert len(np.unique(found)) == 1_281_167
    assert abs(np.corrcoef(np.arange(1_281_167), found)[0, 1]) < 0.005
    steps = np.diff(found)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.005  # of independent draws: -1/2
    assert not (order.Permutation(1_281_167, 3, 8)(np.arange(99)) == found[:99]).any()


def test_shuffled_gives_every_image_once_with_its_label():
    values = drawn(0, 5, 60, 1)
    shuffled = order.Shuffled(values, 1, 2)
    positions, targets = shuffled.draw(0, len(values))
    assert sorted(positions.tolist()) == list(range(len(values)))
    assert (values[positions] == targets).all()
    assert shuffled.coverage() == 1
    assert positions.tolist() != order.Shuffled(values, 1, 3).draw(0, len(values))[0].tolist()
