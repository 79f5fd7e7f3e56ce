"""Average precision against a case worked by hand, scikit-learn, and what must hold for any ranking."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from uic_core.evaluate.average_precision import average_precision, class_average_precisions


def test_hand_worked() -> None:
    # Ranked: + − + + −. Precision at the hits 1, 2/3, 3/4, each a third of the recall.
    scores = np.array([0.1, 0.9, 0.8, 0.7, 0.6])
    positive = np.array([False, True, False, True, True])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_is_not_the_eleven_point_mean() -> None:
    # Ranked + − − +: (1 + 2/4)/2. Eleven points would read 1 at six recalls and 1/2 at five.
    scores, positive = np.array([4.0, 3, 2, 1]), np.array([True, False, False, True])
    eleven = np.mean([1.0 if recall <= 0.5 else 0.5 for recall in np.linspace(0, 1, 11)])
    assert average_precision(scores, positive) == pytest.approx(0.75)
    assert eleven != pytest.approx(0.75)


def test_hand_worked_tie() -> None:
    # + on top, then + and − together: precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision(np.array([2.0, 1, 1]), np.array([True, True, False])) == pytest.approx(5 / 6)


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_equals_scikit_learn(levels: int) -> None:
    random = np.random.default_rng(levels)
    for _ in range(50):
        n = int(random.integers(1, 200))
        scores = random.integers(levels, size=n) / 7.0
        positive = random.random(n) < random.random()
        positive[random.integers(n)] = True
        assert average_precision(scores, positive) == pytest.approx(
            average_precision_score(positive, scores), abs=1e-12
        )


def test_any_increasing_map_and_any_order_of_files_change_nothing() -> None:
    random = np.random.default_rng(0)
    scores, positive = random.integers(20, size=300).astype(float), random.random(300) < 0.2
    shuffle = random.permutation(300)
    expected = average_precision(scores, positive)
    assert average_precision(scores[shuffle], positive[shuffle]) == expected
    assert average_precision(np.exp(scores / 3) - 5, positive) == expected


def test_extremes() -> None:
    positive = np.array([True, True, False, False, False])
    assert average_precision(np.arange(5, 0, -1.0), positive) == 1
    assert average_precision(np.zeros(5), positive) == pytest.approx(2 / 5)  # scores that say nothing


def test_difficult_images_count_neither_way() -> None:
    random = np.random.default_rng(1)
    scores = random.random((80, 3)).astype(np.float32)
    targets = random.choice(np.array([0, 1, 255], np.uint8), size=(80, 3))
    found = class_average_precisions(scores, targets)
    for column in range(3):
        kept = targets[:, column] != 255
        expected = average_precision_score(targets[kept, column], scores[kept, column])
        assert found[column] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_positives_has_no_value() -> None:
    targets = np.array([[1, 0, 255], [0, 0, 0]], np.uint8)
    found = class_average_precisions(np.array([[2.0, 1, 1], [1, 2, 2]]), targets)
    assert found[0] == 1
    assert np.isnan(found[1:]).all()
