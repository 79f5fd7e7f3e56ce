"""Samples of test images come back as they were written; what does not fit together is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uic_core import samples
from uic_core.errors import InputError
from uic_core.samples import Detected, Samples, Segmented


def detected(**changed: Any) -> Detected:
    values: dict[str, Any] = {
        "path": "a.jpg",
        "truth_boxes": np.array([[1, 2, 30, 40]], np.float32),
        "truth_labels": np.array([1]),
        "truth_difficult": np.array([False]),
        "boxes": np.array([[1, 2, 30, 41], [0, 0, 5, 5]], np.float32),
        "labels": np.array([1, 0]),
        "scores": np.array([0.9, 0.4], np.float32),
    }
    return Detected(**(values | changed))


def detections(*images: Detected) -> Samples[Detected]:
    return Samples("uic_3k", "00ff", ("cat", "dog"), tuple(f"{n:06d}" for n in range(len(images))), images)


def segmentations(truth: Any, mask: Any) -> Samples[Segmented]:
    image = Segmented("a.jpg", np.array(truth, np.uint8), np.array(mask, np.uint8))
    return Samples("uic_3k", "00ff", ("background", "dog"), ("2012_000001",), (image,))


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (
            detections(
                detected(), detected(boxes=np.empty((0, 4), np.float32), labels=np.empty(0, int), scores=np.empty(0))
            ),
            Detected,
        ),
        (segmentations([[0, 1, 255]], [[0, 1, 1]]), Segmented),
    ],
)
def test_they_come_back_and_equal_ones_are_equal_bytes(written: Any, kind: Any, tmp_path: Path) -> None:
    written.save(tmp_path / "a.npz")
    written.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = samples.load(tmp_path / "a.npz", kind)
    for name in ("run", "fingerprint", "classes", "ids"):
        assert getattr(found, name) == getattr(written, name)
    for one, other in zip(found.images, written.images, strict=True):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), value)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (detections(detected(labels=np.array([1, 2]))), Detected),
        (detections(detected(scores=np.array([0.9], np.float32))), Detected),
        (detections(detected(boxes=np.zeros((2, 5), np.float32))), Detected),
        (detections(), Detected),
        (detections(detected()), Segmented),
        (segmentations([[0, 1]], [[0], [1]]), Segmented),
        (segmentations([[0, 1]], [[0, 2]]), Segmented),
    ],
)
def test_what_does_not_fit_together_is_refused(written: Any, kind: Any, tmp_path: Path) -> None:
    written.save(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz: .*delete the file and run snakemake again"):
        samples.load(tmp_path / "a.npz", kind)


def test_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        samples.load(tmp_path / "a.npz", Detected)
    detections(detected()).save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="does not hold samples"):
        samples.load(tmp_path / "a.npz", Detected)
    np.savez(tmp_path / "a.npz", ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="does not hold samples"):
        samples.load(tmp_path / "a.npz", Detected)


def test_the_same_images_are_chosen_in_the_list_s_order() -> None:
    ids = [f"{number:06d}" for number in range(500)]
    chosen = samples.choose(ids)
    assert chosen == samples.choose(ids) == tuple(sorted(set(chosen)))
    assert len(chosen) == samples.COUNT
    assert samples.choose(ids[:3]) == tuple(ids[:3])
