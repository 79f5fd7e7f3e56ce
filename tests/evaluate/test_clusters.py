"""Clusters: against hand-worked cases and naive implementations, what the figures show, and bad labels."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uic_core import checkpoint, recipe
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.evaluate import clusters
from uic_core.evaluations import Clusters
from uic_core.evaluations.clusters import ClusterArrays
from uic_core.files import sha256
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.run import trained
from uic_core.strict_yaml import read_yaml


def protocol(**changes: Any) -> Clusters:
    return recipe.parse(Clusters, {"grid_classes": 3, "grid_images": 4, "min_images": 5} | changes, "test")


def index_of(annotated: NDArray[np.integer]) -> Index:
    """An index of images that do not exist, sorted by annotated class as real ones are."""
    annotated = np.sort(annotated)
    classes = tuple(f"class_{number}" for number in range(int(annotated.max()) + 1))
    paths = np.array([f"train/class_{label}/{number:05}.jpg" for number, label in enumerate(annotated)])
    return Index("imagenet_train", Path("/nowhere"), paths, annotated.astype(np.int32), classes, "0" * 16)


def entropy(labels: NDArray[np.integer]) -> float:
    return -sum(n / len(labels) * math.log(n / len(labels)) for n in Counter(labels.tolist()).values())


def naive_nmi(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """The definition: I(a, b) / √(H(a) H(b)), from counts of pairs, in percent."""
    n = len(one)
    a, b, pairs = (
        Counter(one.tolist()),
        Counter(other.tolist()),
        Counter(zip(one.tolist(), other.tolist(), strict=True)),
    )
    information = sum(c / n * math.log(c * n / (a[x] * b[y])) for (x, y), c in pairs.items())
    return 100 * information / math.sqrt(entropy(one) * entropy(other))


def nmi_of(labels: NDArray[np.integer], annotated: NDArray[np.integer], classes: int) -> float:
    return clusters.evaluate(labels, index_of(annotated), classes, protocol())[0]["nmi"].value


def test_nmi_by_hand() -> None:
    """Joint shares 1/2, 1/4, 1/4: I = ½ ln 4/3 + ¼ ln 2/3 + ¼ ln 2 and H = ln 2, ¾ ln 4/3 + ¼ ln 4.

    The arithmetic normaliser would give 34.4 %, the larger entropy 31.1 %.
    """
    found = nmi_of(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), 2)
    assert found == pytest.approx(100 * 0.215762 / math.sqrt(0.693147 * 0.562335), abs=1e-3)
    assert found == pytest.approx(34.559, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_nmi_is_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    annotated = np.sort(random.integers(0, 7, 500))
    labels = np.where(random.random(500) < 0.5, annotated, random.integers(0, 12, 500))
    assert nmi_of(labels, annotated, 12) == pytest.approx(naive_nmi(labels, annotated))


def test_nmi_of_equal_renamed_and_unrelated_labels() -> None:
    annotated = np.repeat(np.arange(5), 40)
    assert nmi_of(annotated, annotated, 5) == pytest.approx(100)
    assert nmi_of(4 - annotated, annotated, 5) == pytest.approx(100)
    assert nmi_of(np.tile(np.arange(4), 50), annotated, 4) == pytest.approx(0, abs=1e-6)  # exactly independent


def test_class_entropies_are_their_definition() -> None:
    random = np.random.default_rng(0)
    labels, annotated = random.integers(0, 9, 400), random.integers(0, 6, 400)
    labels[labels == 4] = 5  # class 4 is empty
    annotated[labels == 7] = 3  # class 7 is pure
    found = clusters.class_entropies(labels, annotated, 10)
    expected = [entropy(annotated[labels == number]) if (labels == number).any() else 0 for number in range(10)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[7] == found[4] == found[9] == 0
    assert found.max() <= math.log(6)


def test_sizes_by_hand() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3] * 3)
    values, arrays = clusters.evaluate(labels, index_of(labels), 4, protocol(min_images=3))
    np.testing.assert_array_equal(arrays.class_sizes, [6, 3, 0, 3])
    # ½ ln 2 + 2 · ¼ ln 4 = 1.5 ln 2, out of ln 4 = 2 ln 2
    assert {name: values[name].value for name in values if name != "nmi"} == {
        "empty_classes": 1,
        "entropy_of_sizes": pytest.approx(75),
        "largest": 6,
        "smallest": 0,
        "mean": 3,
        "lowest_entropy": 0,
        "lowest_entropy/mean": 0,
    }
    annotated = np.array([0] * 2 + [1] * 5 + [2] * 5)
    values = clusters.evaluate(labels, index_of(annotated), 4, protocol(min_images=3))[0]
    assert values["lowest_entropy"].value == 0  # class 3, all of them of one annotated class
    assert values["lowest_entropy"].n == 3
    mean = (entropy(annotated[:6]) + entropy(annotated[6:9])) / 3
    assert values["lowest_entropy/mean"].value == pytest.approx(mean)
    assert values["lowest_entropy/mean"].n == 3


def test_the_most_frequent_annotated_label_is_the_whole_classs() -> None:
    """Of all members, not of the shown ones; of equals the lowest."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    annotated = index_of(np.array([0, 1, 1, 2, 2, 3, 3, 3]))
    _, arrays = clusters.evaluate(labels, annotated, 2, protocol(min_images=1, grid_images=1))
    named = dict(zip(arrays.grid_classes.tolist(), arrays.grid_annotated.tolist(), strict=True))
    assert named == {0: 1, 1: 3}
    _, arrays = clusters.evaluate(np.zeros(4, int), index_of(np.array([3, 3, 1, 1])), 2, protocol(min_images=1))
    assert arrays.grid_annotated.tolist() == [1]


def test_entropy_of_sizes_is_whole_for_equal_classes_and_nothing_for_one() -> None:
    assert clusters.size_entropy(np.full(30, 7)) == pytest.approx(1)
    assert clusters.size_entropy(np.array([0, 50, 0])) == 0


def test_lowest_entropy_among_large_classes_is_shown() -> None:
    sizes = np.array([50, 4, 20, 20, 30, 20])
    entropies = np.array([0.9, 0.0, 0.3, 0.1, 0.3, 0.3])
    chosen = clusters.choose_classes(sizes, entropies, protocol(grid_classes=4))
    assert chosen.tolist() == [3, 4, 2, 5]  # class 1 is too small; of equals the larger, then the first


def test_the_largest_are_shown_where_few_are_large() -> None:
    sizes = np.array([2, 9, 0, 4, 3])
    entropies = np.array([0.0, 0.9, 0.0, 0.2, 0.1])
    assert clusters.choose_classes(sizes, entropies, protocol(grid_classes=3)).tolist() == [4, 3, 1]
    assert clusters.choose_classes(sizes, entropies, protocol(grid_classes=9)).tolist() == [0, 4, 3, 1]  # not the empty


def test_shown_images_are_members_spread_over_the_class() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 300)
    sizes = np.bincount(labels)
    grid = clusters.choose_images(labels, sizes, np.array([3, 1]), 10)
    assert grid.shape == (2, 10)
    assert (labels[grid] == [[3], [1]]).all()
    assert (np.diff(grid) > 0).all()  # no image twice
    # 60 of one annotated class and 20 of another, sorted: 3 to 1 among the shown
    assert (clusters.choose_images(np.zeros(80, int), np.array([80]), np.array([0]), 8) < 60).sum() == 6
    assert clusters.choose_images(labels, sizes, np.array([3, 1]), 1000).shape == (2, max(sizes[3], sizes[1]))


def test_every_image_of_a_class_that_just_fits_is_shown() -> None:
    grid = clusters.choose_images(np.array([1, 0, 1, 1, 0, 1]), np.array([2, 4]), np.array([1]), 4)
    assert grid.tolist() == [[0, 2, 3, 5]]


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle was opened",))


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)


GOOD = np.arange(40, dtype=np.int32) % 4
HEADER = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<i4', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(
    117
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:39], "labels 39 images, but the run trained on 40; put back a good copy"),
        (np.where(GOOD == 3, 4, GOOD), "labels from 0 to 4, but the run has classes 0 to 3; put back a good copy"),
        (GOOD - 1, "labels from -1 to 2"),
        (
            np.where(GOOD == 3, np.nan, GOOD),
            r"holds float64 of shape \[40\], expected int32 \[40\]; put back a good copy",
        ),
        (GOOD.astype(np.float32), "holds float32"),
        (GOOD.reshape(20, 2), r"of shape \[20, 2\]"),
        (np.array([Evil()] * 40, object), "is no whole .npy file of numbers"),
        (pickle.dumps(Evil()), "is no whole .npy file of numbers"),
        (b"", "is no whole .npy file of numbers"),
        (HEADER + b"\n" + bytes(160), "is no whole .npy file of numbers"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "labels.npy"
    write(path, content)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        clusters.read_labels(path, 40, 4)


def test_truncated_and_missing_labels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.npy"
    np.save(path, GOOD)
    whole = path.read_bytes()
    np.testing.assert_array_equal(clusters.read_labels(path, 40, 4), GOOD)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"labels.npy: is no whole .npy file.*put back a good copy"):
            clusters.read_labels(path, 40, 4)
    path.unlink()
    with pytest.raises(InputError, match=r"labels.npy: is not there; run snakemake to make it"):
        clusters.read_labels(path, 40, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"empty_classes": 0, "nmi_annotated": 0.1}\n{"empty_classes": 0}\n', r"history\.jsonl:2: is no epoch .*nmi"),
        ('{"empty_classes": 0, "nmi_', r"history\.jsonl:1: is no epoch"),
        ("[]", r"history\.jsonl:1: is no epoch"),
    ],
)
def test_a_damaged_history_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        clusters.read_history(path)
    path.unlink()
    with pytest.raises(InputError, match=r"history\.jsonl: cannot be read .*No such file"):
        clusters.read_history(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    demo = read_yaml(Path(__file__).parents[2] / "config" / "demo.yaml")["runs"]["uic_3k"]
    made_by = parse_run(demo | {"classes": 6, "images": 90, "seed": 3}, "test")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "checkpoint.safetensors"
    checkpoint.save(path, build("alexnet", classes=6, image_size=64, sobel=True), made_by, {})
    return SimpleNamespace(path=path, recipe=made_by)


def run(saved: SimpleNamespace, folder: Path, index: Index, labels: NDArray[np.integer]) -> tuple[Path, Path]:
    recipe.save(protocol(), folder / "clusters.yaml")
    index.save(folder / "index.npz")
    np.save(folder / "labels.npy", labels)
    lines = [{"epoch": epoch, "empty_classes": 4 - epoch, "nmi_annotated": epoch / 10} for epoch in range(3)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, arrays = folder / "metrics" / "clusters.json", folder / "metrics" / "clusters.npz"
    arguments = [
        *("--checkpoint", saved.path, "--labels", folder / "labels.npy", "--protocol", folder / "clusters.yaml"),
        *("--history", folder / "history.jsonl"),
        *("--train-index", folder / "index.npz", "--out", out, "--arrays", arrays, "--run", "uic_3k"),
    ]
    clusters.main([str(argument) for argument in arguments])
    return out, arrays


def test_stage_counts_positions_in_the_whole_index(saved: SimpleNamespace, tmp_path: Path) -> None:
    """The run saw 90 of 120 images; what the figures get are positions among the 120."""
    index = index_of(np.arange(120) % 5)
    seen = index.subset(90, 3)
    labels = seen.labels.copy()  # pseudo-classes 0..4 are the annotated ones, 5 is empty
    out, archive = run(saved, tmp_path, index, labels)
    found = json.loads(out.read_text())
    assert found["values"]["nmi"]["value"] == pytest.approx(100)
    assert found["values"]["empty_classes"]["value"] == 1
    assert found["values"]["empty_classes/most"]["value"] == 4
    assert found["values"]["empty_classes/last"]["value"] == 2
    assert found["dataset"] == {"name": "imagenet_train", "fingerprint": index.fingerprint, "sizes": {"train": 90}}
    assert found["protocol"]["min_images"] == 5
    assert found["provenance"]["recipe_hash"] == saved.recipe.hash()
    with np.load(archive, allow_pickle=False) as arrays:
        assert arrays["class_sizes"].tolist() == np.bincount(labels, minlength=6).tolist()
        grid, shown = arrays["grid_images"], arrays["grid_classes"]
        assert arrays["empty_by_epoch"].tolist() == [4, 3, 2]
        assert arrays["nmi_by_epoch"].tolist() == [0, 0.1, 0.2]
    assert grid.shape == (3, 4)
    assert (index.labels[grid] == shown[:, None]).all()
    assert set(index.paths[grid].ravel().tolist()) <= set(seen.paths.tolist())
    drawn = ClusterArrays.load(archive)
    np.testing.assert_array_equal(drawn.grid_entropy, 0)
    first = archive.read_bytes()
    assert run(saved, tmp_path, index, labels)[1].read_bytes() == first


def test_fault_69_small_classes_have_rows_of_their_own_length_and_are_said(
    saved: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], seen: Callable[[object], None]
) -> None:
    """Of 90 images one class has 84, two others two or three: 4, 2 and 3 images are shown."""
    index = index_of(np.arange(120) % 5)
    labels = np.array([0] * 84 + [1] * 2 + [2] * 3 + [4])
    _, archive = run(saved, tmp_path, index, labels)
    told = "Fig. 4: classes of 5 images or more: 1, so smaller ones are shown too"
    assert told in capsys.readouterr().out
    drawn = ClusterArrays.load(archive)
    assert drawn.grid_images.shape == (3, 4)
    found = dict(zip(drawn.grid_classes.tolist(), (drawn.grid_images >= 0).sum(1).tolist(), strict=True))
    assert found == {0: 4, 1: 2, 2: 3}
    part = index.subset(90, 3)
    for number, row in zip(drawn.grid_classes, drawn.grid_images, strict=True):
        assert set(index.paths[row[row >= 0]]) <= set(part.paths[labels == number])
    seen(told)


def test_stage_refuses_labels_of_another_run(
    saved: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(np.arange(120) % 5)
    with pytest.raises(SystemExit) as stop:
        run(saved, tmp_path, index, index.labels)
    assert stop.value.code == 2
    assert "labels.npy: labels 120 images, but the run trained on 90" in capsys.readouterr().err
    assert not (tmp_path / "metrics").exists()


def test_fault_28_the_labels_hash_and_fault_29_another_runs_labels(
    saved: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], seen: Callable[[object], None]
) -> None:
    """Labels of a run with as many images and classes: only training.json tells them apart."""
    index = index_of(np.arange(120) % 5)
    labels = index.subset(90, 3).labels.copy()
    out, _ = run(saved, tmp_path, index, labels)
    files = json.loads(out.read_text())["provenance"]["files"]
    assert files["labels"] == sha256(tmp_path / "labels.npy")[:16]
    assert files.keys() == {"labels", "history", "arrays"}
    trained.write(tmp_path, ["labels.npy", "history.jsonl"])
    run(saved, tmp_path, index, labels)
    with pytest.raises(SystemExit):
        run(saved, tmp_path, index, np.roll(labels, 1))
    message = capsys.readouterr().err
    seen(message)
    assert "labels.npy: is not the file that the run's training wrote" in message


def test_an_index_smaller_than_the_run_is_named(
    saved: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(np.arange(60) % 5)
    with pytest.raises(SystemExit):
        run(saved, tmp_path, index, index.labels)
    assert "imagenet_train: 90 images wanted, the index has 60" in capsys.readouterr().err
