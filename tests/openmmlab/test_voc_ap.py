"""VOC 2007's average precision against given values, a plain transcription of its rule, and its properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uic_core.openmmlab.voc_ap import Scene, average_precision

CASES = json.loads((Path(__file__).parents[1] / "cases" / "voc_ap.json").read_text())["cases"]


def scene(truths: Any, difficult: Any, boxes: Any, scores: Any) -> Scene:
    return Scene(
        np.array(truths, np.float64).reshape(-1, 4),
        np.array(difficult, bool),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )


def scenes_of(case: dict[str, Any], name: str) -> list[Scene]:
    made = []
    for image in case["images"]:
        truths = [each for each in image["truth"] if each["class"] == name]
        found = [each for each in image["found"] if each["class"] == name]
        made.append(
            scene(
                [each["box"] for each in truths],
                [each["difficult"] for each in truths],
                [each["box"] for each in found],
                [each["score"] for each in found],
            )
        )
    return made


@pytest.mark.parametrize("case", CASES)
def test_the_given_values_come_out(case: dict[str, Any]) -> None:
    assert case["ap"]
    for name, expected in case["ap"].items():
        assert average_precision(scenes_of(case, name)) == pytest.approx(expected, abs=1e-6)


def plainly(scenes: list[Scene]) -> float | None:
    """The rule in plain loops."""
    ranked = sorted(
        ((float(score), number, place) for number, one in enumerate(scenes) for place, score in enumerate(one.scores)),
        key=lambda each: (-each[0], each[1], each[2]),
    )
    objects = sum(not each for one in scenes for each in one.difficult)
    if not objects:
        return None
    taken, right, wrong, curve = set(), 0, 0, []
    for _, number, place in ranked:
        one = scenes[number]
        best, nearest = 0.0, -1
        left, top, end, bottom = one.boxes[place]
        for truth, (a, b, c, d) in enumerate(one.truths):
            width, height = min(end, c) - max(left, a) + 1, min(bottom, d) - max(top, b) + 1
            if width > 0 and height > 0:
                common = width * height
                union = (end - left + 1) * (bottom - top + 1) + (c - a + 1) * (d - b + 1) - common
                if common / union > best:
                    best, nearest = common / union, truth
        if best > 0.5 and one.difficult[nearest]:
            continue
        if best > 0.5 and (number, nearest) not in taken:
            taken.add((number, nearest))
            right += 1
        else:
            wrong += 1
        curve.append((right / objects, right / (right + wrong)))
    return sum(max((p for recall, p in curve if recall >= step * 0.1), default=0.0) for step in range(11)) / 11


def random_scenes(rng: np.random.Generator) -> list[Scene]:
    made = []
    for _ in range(int(rng.integers(1, 8))):
        corner = rng.integers(0, 40, (int(rng.integers(0, 5)), 2))
        truths = np.concatenate([corner, corner + rng.integers(0, 30, corner.shape)], axis=1)
        near = np.repeat(truths, 2, axis=0) + rng.integers(-4, 5, (2 * len(truths), 4))
        far = rng.integers(0, 40, (int(rng.integers(0, 4)), 2))
        boxes = np.concatenate([near, np.concatenate([far, far + 9], axis=1)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        scores = rng.integers(0, 6, len(boxes)) / 5  # many ties
        made.append(scene(truths, rng.random(len(truths)) < 0.3, boxes, scores))
    return made


@pytest.mark.parametrize("seed", range(40))
def test_it_equals_the_rule_in_plain_loops(seed: int) -> None:
    scenes = random_scenes(np.random.default_rng(seed))
    expected = plainly(scenes)
    assert average_precision(scenes) == (None if expected is None else pytest.approx(expected, abs=1e-12))


BOX = [0, 0, 9, 9]


def test_an_overlap_of_one_half_is_no_match_and_the_last_pixel_counts() -> None:
    assert average_precision([scene([BOX], [False], [[0, 0, 9, 4]], [1])]) == 0  # 50 of 100 pixels
    assert average_precision([scene([BOX], [False], [[0, 0, 9, 5]], [1])]) == 1
    # 7 of 13 rows are shared; without the last pixel it would be 6 of 12.
    assert average_precision([scene([BOX], [False], [[0, 3, 9, 12]], [1])]) == 1


@pytest.mark.parametrize(("found", "steps"), [(1, 3), (3, 6), (4, 9), (5, 11)])
def test_a_recall_counts_where_the_development_kit_counts_it(found: int, steps: int) -> None:
    # 3/5 does not reach the kit's 0.6000000000000001: six of its recalls are reached, 0 to 0.5.
    truths = [[20 * place, 0, 20 * place + 9, 9] for place in range(5)]
    value = average_precision([scene(truths, [False] * 5, truths[:found], np.arange(found, 0, -1))])
    assert value == pytest.approx(steps / 11)


def test_two_detections_of_an_object_are_one_right_and_one_wrong() -> None:
    twice = scene([BOX, [50, 0, 59, 9]], [False, False], [BOX, BOX, [50, 0, 59, 9]], [0.9, 0.8, 0.7])
    # precision 1 to a recall of .5, then 2/3
    assert average_precision([twice]) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_difficult_object_counts_neither_for_nor_against() -> None:
    there = scene([BOX, [50, 0, 59, 9]], [True, False], [BOX, BOX, [50, 0, 59, 9]], [0.9, 0.8, 0.7])
    assert average_precision([there]) == 1
    assert average_precision([scene([BOX], [True], [BOX], [1])]) is None
    assert average_precision([]) is None


def test_a_detection_of_a_taken_object_is_not_given_to_the_next_best() -> None:
    truths = [BOX, [0, 2, 9, 11]]
    # Both detections overlap the first object most; both overlap the second by more than half.
    value = average_precision([scene(truths, [False, False], [BOX, [0, 0, 9, 10]], [0.9, 0.8])])
    assert value == pytest.approx(6 / 11)


def test_of_equal_scores_the_earlier_image_comes_first() -> None:
    right, wrong = scene([BOX], [False], [BOX], [0.5]), scene([], [], [BOX], [0.5])
    assert average_precision([right, wrong]) == 1
    assert average_precision([wrong, right]) == pytest.approx(0.5)
