"""Figures show the numbers they are given, are the same bytes each time, and refuse what does not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from defusedxml import ElementTree
from matplotlib.patches import Rectangle
from PIL import Image

from tests.resealed import rewrite
from uic_core.data.index import Index, build_folder
from uic_core.evaluations.clusters import ClusterArrays
from uic_core.files import sha256
from uic_core.report import figures
from uic_core.run import metrics

COLORS = {"blue": (20, 40, 200), "green": (20, 160, 40), "red": (200, 30, 30)}


@pytest.fixture
def made(tmp_path: Path, make_metrics: Callable[..., metrics.Metrics]) -> SimpleNamespace:
    """An index of 3 classes × 4 plain images, clusters of 5 classes, and the metrics that go with them."""
    for name, color in COLORS.items():
        for number in range(4):
            path = tmp_path / "images" / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + 5 * number, 40), color).save(path)
    index = build_folder(tmp_path / "images", "train", "imagenet")
    index.save(tmp_path / "index.npz")
    arrays: dict[str, Any] = {
        "class_sizes": np.array([2, 3, 4, 3, 0]),
        "grid_classes": np.array([2, 0]),
        "grid_images": np.array([[0, 1, 2, 4], [8, 9, 10, 11]]),
        "grid_entropy": np.array([0.25, 0.5]),
        "grid_annotated": np.array([0, 2]),
    }
    np.savez(tmp_path / "clusters.npz", **arrays)
    content = make_metrics("uic_3k", "clusters", {"nmi": metrics.Value(value=30.0, unit="%")}).model_dump()
    content["dataset"]["fingerprint"] = index.fingerprint
    metrics.write(tmp_path / "clusters.json", metrics.Metrics.model_validate(content))
    belong_together(tmp_path)
    return SimpleNamespace(folder=tmp_path, index=index, arrays=arrays, clusters=ClusterArrays(**arrays))


def belong_together(folder: Path) -> None:
    """Write the arrays' hash into the metrics, as the stage that makes both does."""
    content = json.loads((folder / "clusters.json").read_text())
    content["provenance"]["files"] = {"arrays": sha256(folder / "clusters.npz")[:16]}
    rewrite(folder / "clusters.json", json.dumps(content))


def run(made: SimpleNamespace, number: int, scale: str = "demo") -> tuple[bytes, bytes]:
    folder = made.folder
    arguments = ["--figure", number, "--arrays", folder / "clusters.npz", "--metrics", folder / "clusters.json"]
    arguments += [
        "--index",
        folder / "index.npz",
        "--scale",
        scale,
        "--out",
        folder / "f.png",
        "--svg",
        folder / "f.svg",
    ]
    figures.main([str(argument) for argument in arguments])
    return (folder / "f.png").read_bytes(), (folder / "f.svg").read_bytes()


@pytest.mark.parametrize("number", [3, 4])
def test_same_bytes_each_time(made: SimpleNamespace, number: int) -> None:
    first = run(made, number)
    assert run(made, number) == first
    assert Image.open(made.folder / "f.png").width == round(figures.WIDTH * figures.DPI)
    assert ElementTree.fromstring(first[1]).tag.endswith("svg")
    assert b"<dc:date>" not in first[1]
    assert run(made, number, "paper") != first  # without the line that says demo


@pytest.mark.parametrize("seed", range(20))
def test_bins_hold_every_class_and_part_integers(seed: int) -> None:
    # Property: edges lie halfway between integers, are equally wide, and the counts add up to K.
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(rng.uniform(1, 2000), size=int(rng.integers(1, 3000)))
    edges = figures.bin_edges(sizes)
    assert np.all(edges % 1 == 0.5)
    assert len(set(np.diff(edges))) == 1
    assert len(edges) <= 61
    assert edges[0] < sizes.min() <= sizes.max() < edges[-1]
    assert np.histogram(sizes, edges)[0].sum() == len(sizes)


def test_figure_3_shows_the_counts_and_the_mean(made: SimpleNamespace) -> None:
    figure = figures.class_sizes_figure(made.clusters.class_sizes)
    left, right = figure.axes
    heights = [patch.get_height() for patch in left.patches]
    expected, _ = np.histogram([2, 3, 4, 3, 0], figures.bin_edges(made.clusters.class_sizes))
    assert heights == expected.tolist()
    assert left.lines[0].get_xdata()[0] == pytest.approx(12 / 5)
    assert "mean N/K = 2.4" in [text.get_text() for text in left.texts]
    assert right.patches[0].get_data().values.tolist() == [4, 3, 3, 2, 0]
    assert "K = 5   min 0   median 3   max 4" in [text.get_text() for text in right.texts]


def test_figure_4_shows_the_images_their_class_and_frames_the_others(made: SimpleNamespace) -> None:
    (axes,) = figures.grid_figure(made.clusters, made.index).axes
    canvas = axes.images[0].get_array()
    side = figures.THUMBNAIL + figures.GAP
    shown = [
        [tuple(canvas[(row * 2 + 1) * side // 2, (column * 2 + 1) * side // 2]) for column in range(4)]
        for row in (0, 1)
    ]
    blue, green, red = COLORS.values()
    assert shown == [[blue, blue, blue, green], [red] * 4]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(frame.get_x() // side, frame.get_y() // side) for frame in frames] == [(3, 0)]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["blue", "entropy 0.25 nats", "class 2, 4 images", "red", "entropy 0.50 nats", "class 0, 2 images"]


def test_figure_4_names_the_whole_classs_most_frequent_label_not_the_shown_images(made: SimpleNamespace) -> None:
    """Three of four shown are blue, but the pseudo-class is green for the most part: the three have frames."""
    clusters = ClusterArrays(**made.arrays | {"grid_annotated": np.array([1, 2])})
    (axes,) = figures.grid_figure(clusters, made.index).axes
    side = figures.THUMBNAIL + figures.GAP
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(frame.get_x() // side, frame.get_y() // side) for frame in frames] == [(0, 0), (1, 0), (2, 0)]
    assert axes.texts[0].get_text() == "green"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("class_sizes", np.array([[1, 2]]), "class_sizes has the form int64[1, 2]"),
        ("class_sizes", np.array([-1, 2, 3]), "class_sizes must be counts"),
        ("grid_images", np.array([[0.5]]), "grid_images has the form float64[1, 1]"),
        ("grid_classes", np.array([2, 5]), "grid_classes outside 0…4"),
        ("grid_classes", np.array([2]), "differ in length"),
        ("grid_entropy", np.array([0.1, np.nan]), "grid_entropy must be finite"),
        ("grid_annotated", np.array([0, 3]), "the grid names annotated class 3, the index has 3"),
        ("grid_annotated", None, "grid_annotated is not a file"),
        ("grid_images", np.array([[0], [12]]), "the grid shows image 12, the index has 12"),
        ("grid_images", None, "grid_images is not a file"),
        ("class_sizes", np.array([{"pickled": 1}], object), "does not hold the arrays of clusters"),
    ],
)
def test_unfit_arrays_are_named(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str], name: str, value: Any, message: str
) -> None:
    arrays = {**made.arrays, name: value}
    np.savez(made.folder / "clusters.npz", **{key: array for key, array in arrays.items() if array is not None})
    belong_together(made.folder)
    with pytest.raises(SystemExit) as caught:
        run(made, 4)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (made.folder / "f.png").exists()


def test_fault_30_arrays_that_were_not_written_with_the_metrics_are_refused(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str], seen: Callable[[object], None]
) -> None:
    np.savez(made.folder / "clusters.npz", **made.arrays | {"class_sizes": np.array([2, 3, 4, 2, 1])})
    with pytest.raises(SystemExit):
        run(made, 3)
    message = capsys.readouterr().err
    seen(message)
    assert "clusters.npz: is not the file that was written with" in message
    assert "clusters.json; delete both and run snakemake again" in message


def test_clusters_of_another_index_and_lost_images_are_named(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = made.index.file(1)
    lost.rename(lost.with_suffix(".gone"))
    with pytest.raises(SystemExit):
        run(made, 4)
    assert str(lost) in capsys.readouterr().err
    other = Index(**{**vars(made.index), "fingerprint": "f" * 16})
    other.save(made.folder / "index.npz")
    with pytest.raises(SystemExit):
        run(made, 3)
    message = capsys.readouterr().err
    assert "clusters.json: speaks of imagenet" in message
    assert "f" * 16 in message


def test_missing_and_damaged_files_are_named(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = made.folder / "clusters.npz"
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(SystemExit):
        run(made, 3)
    assert f"{arrays}: is not the file that was written with" in capsys.readouterr().err
    arrays.unlink()
    with pytest.raises(SystemExit):
        run(made, 3)
    assert f"{arrays}: there is no such file" in capsys.readouterr().err


def test_fault_69_short_rows_are_drawn_and_what_was_dropped_is_said(
    made: SimpleNamespace, seen: Callable[[object], None]
) -> None:
    path = made.folder / "clusters.json"
    content = metrics.read(path).model_dump()
    content["protocol"] = {"min_images": 4}
    metrics.write(path, metrics.Metrics.model_validate(content))
    arrays = made.arrays | {"grid_images": np.array([[0, 1, 2, 4], [8, 9, -1, -1]])}
    np.savez(made.folder / "clusters.npz", **arrays)
    belong_together(made.folder)
    run(made, 4)
    figure = figures.grid_figure(ClusterArrays(**arrays), made.index)
    canvas = figure.axes[0].images[0].get_array()
    side = figures.THUMBNAIL + figures.GAP
    assert [tuple(canvas[side + side // 2, column * side + side // 2]) == COLORS["red"] for column in range(4)] == [
        True, True, False, False,
    ]  # fmt: skip
    read = metrics.read(path)
    told = figures._small(ClusterArrays(**arrays), read)
    seen(told)
    assert told == "classes of 4 images or more: 1, so smaller ones are shown too"
    figure = figures.grid_figure(ClusterArrays(**arrays), made.index, f"{told}   ·   {'demo data, ' * 8}")
    assert all(line == line.strip(" ·") for line in figure.texts[-1].get_text().splitlines())
    foot = figure.texts[-1].get_window_extent()
    assert figure.bbox.xmin < foot.xmin  # two lines, between the images and the edge
    assert figure.bbox.ymin < foot.ymin < foot.ymax < figure.axes[0].get_window_extent().ymin


def test_fault_69_twelve_classes_of_one_image_make_no_tall_picture(made: SimpleNamespace) -> None:
    arrays = {
        "class_sizes": np.ones(12, int),
        "grid_classes": np.arange(12),
        "grid_images": np.arange(12)[:, None],
        "grid_entropy": np.zeros(12),
        "grid_annotated": np.zeros(12, int),
    }
    np.savez(made.folder / "clusters.npz", **arrays)
    belong_together(made.folder)
    run(made, 4)
    width, height = Image.open(made.folder / "f.png").size
    assert (width, height) == (round(figures.WIDTH * figures.DPI), round((12 * 0.9 + 0.3) * figures.DPI))
