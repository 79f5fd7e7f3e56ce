"""Pictures of sample images show the boxes and masks that they are given, and are the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from uic_core.data.palette import palette
from uic_core.files import sha256
from uic_core.report import figures, sample_figures
from uic_core.run import metrics
from uic_core.samples import Detected, Samples, Segmented

TABLES = Path(__file__).parents[2] / "config" / "tables.yaml"
LABELS = {"random_rgb": "Random", "uic_3k_fft": "Ours"}
CLASSES = ("cat", "dog")


@pytest.fixture
def made(tmp_path: Path, make_metrics: Callable[..., metrics.Metrics]) -> SimpleNamespace:
    """Two images, wide and tall; two runs that found a right box, a wrong one and a faint one, or nothing; masks."""
    detections: dict[str, list[Detected]] = {run: [] for run in LABELS}
    masks: dict[str, list[Segmented]] = {run: [] for run in LABELS}
    for number, (width, height) in enumerate([(60, 40), (40, 60)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (width, height), (90, 90, 90)).save(path)
        truth: dict[str, Any] = {
            "path": str(path),
            "truth_boxes": np.array([[5, 5, 24, 24], [30, 30, 34, 34]], np.float32),
            "truth_labels": np.array([1, 0]),
            "truth_difficult": np.array([False, True]),
        }
        found = np.array([[6, 5, 25, 24], [5, 5, 24, 24], [0, 0, 9, 9]], np.float32)
        right = {"boxes": found, "labels": np.array([1, 0, 1]), "scores": np.array([0.9, 0.5, 0.1], np.float32)}
        none = {"boxes": found[2:], "labels": np.array([1]), "scores": np.array([0.07], np.float32)}
        detections["uic_3k_fft"].append(Detected(**truth, **right))
        detections["random_rgb"].append(Detected(**truth, **none))
        mask = np.zeros((height, width), np.uint8)
        mask[5:25, 5:25] = 2
        annotated = np.where(np.arange(width) == 4, 255, mask).astype(np.uint8)
        masks["uic_3k_fft"].append(Segmented(str(path), annotated, mask))
        masks["random_rgb"].append(Segmented(str(path), annotated, np.zeros_like(mask)))
    paths: dict[str, list[Path]] = {"detection": [], "segmentation": []}

    def save(found: Samples[Any], path: Path) -> None:
        """With the metrics that a stage writes beside it."""
        found.save(path)
        evaluation = path.stem.rpartition("_")[2]
        beside = make_metrics(found.run, evaluation, {}, recipe_hash="0123", files={"samples": sha256(path)[:16]})
        metrics.write(path.with_suffix(".json"), beside)

    for run in ("uic_3k_fft", "random_rgb"):  # not in the table's order
        for task, images, classes in (
            ("detection", detections[run], CLASSES),
            ("segmentation", masks[run], ("background", *CLASSES)),
        ):
            paths[task].append(tmp_path / f"{run}_{task}.npz")
            save(Samples(run, "00ff", classes, ("000001", "000002"), tuple(images)), paths[task][-1])
    return SimpleNamespace(folder=tmp_path, paths=paths, save=save)


def read(made: SimpleNamespace, task: str, kind: Any) -> list[Samples[Any]]:
    return sample_figures.read(made.paths[task], [path.with_suffix(".json") for path in made.paths[task]], {}, kind)


def run(made: SimpleNamespace, task: str, scale: str = "demo", **recipes: str) -> tuple[bytes, bytes]:
    png, svg = made.folder / "f.png", made.folder / "f.svg"
    arguments = ["--task", task, "--samples", *made.paths[task], "--tables", TABLES, "--scale", scale, "--metrics"]
    arguments += [path.with_suffix(".json") for path in made.paths[task]]
    arguments += ["--recipes", *(f"{run}={hash}" for run, hash in recipes.items())]
    sample_figures.main([str(argument) for argument in [*arguments, "--out", png, "--svg", svg]])
    return png.read_bytes(), svg.read_bytes()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_same_bytes_each_time(made: SimpleNamespace, task: str) -> None:
    first = run(made, task)
    assert run(made, task) == first
    assert Image.open(made.folder / "f.png").width == round(figures.WIDTH * figures.DPI)
    assert b"<dc:date>" not in first[1]
    assert run(made, task, "paper") != first  # without the line that says demo


def test_boxes_are_drawn_right_or_wrong_and_a_run_without_any_says_so(made: SimpleNamespace) -> None:
    figure = sample_figures.detection_figure(read(made, "detection", Detected), LABELS)
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["Annotated", "Random", "Ours"]
    annotated, nothing, ours = figure.axes[:3]

    def boxes(axes: Any) -> list[tuple[Any, ...]]:
        found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        return [(patch.get_edgecolor()[:3], patch.get_bbox().extents.tolist()) for patch in found]

    blue, red, ink = (to_rgb(colour) for colour in (figures.BLUE, figures.RED, figures.INK))
    assert boxes(annotated) == [(ink, [4.5, 4.5, 24.5, 24.5]), (ink, [29.5, 29.5, 34.5, 34.5])]
    assert boxes(ours) == [(red, [4.5, 4.5, 24.5, 24.5]), (blue, [5.5, 4.5, 25.5, 24.5])]
    assert [text.get_text() for text in ours.texts] == ["cat .50", "dog .90"]
    assert boxes(nothing) == []
    assert [text.get_text() for text in nothing.texts] == ["no score ≥ 0.3; best 0.07"]


def test_masks_have_voc_s_colours_and_their_legend(made: SimpleNamespace) -> None:
    figure = sample_figures.segmentation_figure(read(made, "segmentation", Segmented), LABELS)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Image", "Annotated", "Random", "Ours"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dog"]
    pixels = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:4]]
    inside = tuple(side // 3 for side in pixels[3].shape[:2])
    assert np.ptp(pixels[3][inside]) > 40  # coloured
    np.testing.assert_allclose(pixels[3][inside], 0.4 * 90 + 0.6 * palette()[2], atol=1)
    assert np.ptp(pixels[2].reshape(-1, 3), axis=1).max() == 0  # background alone: grey
    left = pixels[1].shape[1] * 9 // 120  # the fifth column of 60
    assert pixels[1][inside[0], left].min() > 240


def test_runs_of_other_images_are_refused(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    other = made.paths["detection"][1]
    found = read(made, "detection", Detected)[1]
    made.save(Samples(found.run, "ff00", found.classes, found.ids, found.images), other)
    with pytest.raises(SystemExit) as stop:
        run(made, "detection")
    assert stop.value.code == 2
    assert f"{other}: shows other images than" in capsys.readouterr().err


def test_samples_of_another_evaluation_or_recipe_are_refused(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made, "segmentation", random_rgb="0123")
    with pytest.raises(SystemExit):
        run(made, "segmentation", random_rgb="4567")
    message = "random_rgb_segmentation.json: is of recipe 0123, but run 'random_rgb' of the config has 4567; run"
    assert message in capsys.readouterr().err
    other = made.paths["segmentation"][0]
    other.write_bytes(made.paths["segmentation"][1].read_bytes())
    with pytest.raises(SystemExit):
        run(made, "segmentation")
    assert f"{other}: is not the file that was written with" in capsys.readouterr().err


def test_one_run_twice_is_refused(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    made.paths["detection"][1] = made.paths["detection"][0]
    with pytest.raises(SystemExit) as stop:
        run(made, "detection")
    assert stop.value.code == 2
    assert "two of them are of one run" in capsys.readouterr().err
